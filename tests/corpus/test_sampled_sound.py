"""The sound of the sampled corpus: FluidSynth, drum kits, mixing."""

import dataclasses
import hashlib
import pathlib
import re
import subprocess
import sys

import numpy as np
import pyloudnorm
import pytest
import scipy.signal

from musiclm_jax.corpus.sampled import kits, mixing, soundfonts
from musiclm_jax.corpus.sampled.attributes import COLOURS, KITS, PARTS, ROOMS, Attributes
from musiclm_jax.corpus.sampled.clip import SampledCorpus
from musiclm_jax.corpus.sampled.instruments import INSTRUMENTS
from musiclm_jax.corpus.sampled.play import play
from musiclm_jax.corpus.sampled.score import Note, Score
from musiclm_jax.corpus.sampled.soundfonts import SAMPLE_RATE_HZ, SOUNDFONTS, Program, Tone
from musiclm_jax.corpus.terms import DYNAMICS
from musiclm_jax.errors import UserError

INSTALLED = kits.FOLDER.exists() and all(pathlib.Path(font.path).exists() for font in SOUNDFONTS.values())
try:
    import fluidsynth  # noqa: F401
except ImportError:
    INSTALLED = False
needs_samples = pytest.mark.skipif(not INSTALLED, reason="pyfluidsynth and the packages of Debian that docs/data.md names are not installed")

ATTRIBUTES = Attributes(
    instrument="flute",
    family="woodwind",
    tempo_bpm=120,
    tempo="mid",
    meter="4/4",
    key="C major",
    tonic=0,
    mode="major",
    drums=True,
    kit="acoustic",
    style="pop",
    dynamics="medium",
    bass="electric bass",
    chords="piano",
    pad="",
    counter="",
    feel="straight",
    density="flowing",
    articulation="legato",
    room="room",
    colour="clean",
    form=("verse",),
    tune="",
)
FLUID_PIANO = Program("FluidR3", 0)


def score(length_sec=2.0, parts=PARTS, **attributes):
    """A bar or more: a note of the lead on each beat, and the band."""
    notes = []
    for beat in range(int(2 * length_sec) + 1):
        notes += [Note("lead", 72 + beat % 5, beat / 2, 0.45, 100), Note("bass", 36, beat / 2, 0.4, 90)]
        notes += [Note("chords", pitch, beat / 2, 0.4, 70) for pitch in (60, 64, 67)]
        notes += [Note("drums", 38 if beat % 2 else 36, beat / 2, 0.1, 100), Note("drums", 42, beat / 2 + 0.25, 0.1, 80)]
    return Score(dataclasses.replace(ATTRIBUTES, **attributes), tuple(note for note in notes if note.part in parts), length_sec)


def noise(num=SAMPLE_RATE_HZ, seed=0):
    return np.random.default_rng(seed).standard_normal(num).astype(np.float32)


def power_db(wave, low_hz, high_hz):
    power, freq = np.abs(np.fft.rfft(wave)) ** 2, np.fft.rfftfreq(len(wave), 1 / SAMPLE_RATE_HZ)
    return 10 * np.log10(power[(freq >= low_hz) & (freq < high_hz)].mean())


def digest(wave):
    return hashlib.sha256(wave.tobytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------- Whole clips


@needs_samples
def test_stems_add_up_to_the_mix_but_for_the_hiss_of_the_lead():
    for room, colour in zip(("dry", "room", "hall", "room"), COLOURS):
        waves = play(score(1.37, room=room, colour=colour, dynamics="loud"), seed=1, index=5)
        assert {name: (wave.shape, wave.dtype) for name, wave in waves.items()} == dict.fromkeys(("mix", "lead", "band"), ((32880,), np.float32))
        assert max(np.abs(wave).max() for wave in waves.values()) <= 1.0
        rest = (waves["mix"] - waves["lead"] - waves["band"]).astype(np.float64)
        assert np.std(rest) == pytest.approx(mixing.HISS, rel=0.05)
        assert all(np.sqrt(np.mean(np.square(waves[name]))) > 0.02 for name in waves)


@needs_samples
def test_a_clip_depends_on_its_numbers_alone():
    clip = score(1.0, kit="electronic", room="hall")
    first = play(clip, seed=2, index=3)
    play(score(1.0, instrument="organ", chords="strings", kit="hand drums"), seed=9, index=9)
    again = play(clip, seed=2, index=3)
    assert {name: digest(wave) for name, wave in first.items()} == {name: digest(wave) for name, wave in again.items()}
    for numbers in ((3, 3, 0), (2, 4, 0), (2, 3, 1)):
        other = play(clip, seed=numbers[0], index=numbers[1], variant=numbers[2])
        assert np.abs(other["mix"] - first["mix"]).max() > 0.01


@needs_samples
def test_a_lead_alone_has_a_band_of_hiss():
    waves = play(score(parts=("lead",), drums=False, kit="", bass="", chords=""), seed=0, index=0)
    assert np.std(waves["band"]) == pytest.approx(mixing.HISS, rel=0.05)
    assert np.std(waves["lead"]) > 0.02


@needs_samples
def test_parts_of_one_instrument_are_played_by_the_same_one():
    """A piano that accompanies itself: the lead's stem is the same whether chords come by the same piano or by any other."""
    same = {
        digest(play(score(chords=chords, instrument="piano", parts=("lead",)), seed=0, index=index)["lead"]) for index in range(3) for chords in ("piano", "")
    }
    assert len(same) == 3


@needs_samples
@pytest.mark.parametrize("kit", KITS)
def test_drums_are_heard_in_every_kit(kit):
    waves = [play(score(kit=kit, parts=parts, room="dry"), seed=0, index=4)["band"] for parts in (("lead", "drums"), ("lead",))]
    assert mixing.loudness_lufs(waves[0]) > -35 and mixing.loudness_lufs(waves[1]) < -60


# ---------------------------------------------------------------------------------------------------------------------- FluidSynth


@needs_samples
def test_tones_start_within_a_block_and_end():
    for start_sec in (0.1, 0.30011, 0.4567):
        wave = soundfonts.render([Tone(60, start_sec, start_sec + 0.2, 120)], Program("FluidR3", 16), num_samples=24000)
        assert wave.shape == (24000,) and wave.dtype == np.float32
        onset = np.argmax(np.abs(wave) > 1e-3) / SAMPLE_RATE_HZ
        assert start_sec - 0.002 < onset < start_sec + 0.01
        assert np.abs(wave[round((start_sec + 0.1) * 24000) :][:1000]).max() > 30 * np.abs(wave[-1000:]).max()


@needs_samples
def test_rendering_leaves_no_traces():
    """The samples are the same in another process and after other programs, and after more voices than a synthesizer has."""
    call = (
        "from musiclm_jax.corpus.sampled.soundfonts import *; print(render([Tone(60, 0.1, 0.5, 90)], Program('FluidR3', 0), num_samples=12000).tobytes().hex())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", call + "; import sys; assert 'jax' not in sys.modules"], capture_output=True, text=True, check=True)
    soundfonts.render([Tone(pitch, 0.0, 9.0, 100) for pitch in range(128)] * 3, Program("FluidR3", 48), num_samples=2400)
    assert soundfonts.render([Tone(60, 0.1, 0.5, 90)], FLUID_PIANO, num_samples=12000).tobytes().hex() == elsewhere.stdout.strip()


@needs_samples
def test_every_instrument_sounds_in_its_range_and_in_tune():
    for name, instrument in INSTRUMENTS.items():
        for program in instrument.programs:
            for font in SOUNDFONTS:
                for pitch in (instrument.low, instrument.high):
                    wave = soundfonts.render([Tone(pitch, 0.0, 0.3, 100)], Program(font, program), num_samples=7200)
                    assert np.sqrt(np.mean(np.square(wave))) > 1e-3, (name, font, pitch)


@needs_samples
def test_a_repeated_tone_is_struck_again():
    """The end of the first comes after the start of the second, which it must not end."""
    wave = soundfonts.render([Tone(60, 0.0, 0.6, 100), Tone(60, 0.5, 2.0, 100)], Program("FluidR3", 16), num_samples=36000)
    assert np.abs(wave[30000:]).max() > 0.5 * np.abs(wave).max()


def test_events_end_before_they_start_and_never_start_twice():
    tones = [Tone(60, 0.0, 0.5, 90), Tone(60, 0.25, np.inf, 80), Tone(60, 0.25, 0.3, 70), Tone(61, 0.25, 0.25, 60)]
    block = 48000 / 64
    quarter = round(0.25 * block)
    expected = [(0, 90, 60), (quarter, 0, 60), (quarter, 60, 61), (quarter, 80, 60), (quarter + 1, 0, 61)]
    assert soundfonts._events(tones) == expected


def test_what_is_missing_is_named_with_its_remedy(monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "fluidsynth", None)
        with pytest.raises(UserError, match=r"pip install 'musiclm-jax\[sampled\]'"):
            soundfonts._api.__wrapped__()
        (tmp_path / "fluidsynth.py").write_text("raise ImportError('no library')")
        patched.delitem(sys.modules, "fluidsynth")
        patched.syspath_prepend(tmp_path)
        with pytest.raises(UserError, match="apt-get install libfluidsynth3"):
            soundfonts._api.__wrapped__()
    monkeypatch.setattr(soundfonts, "_api", lambda: None)
    monkeypatch.setitem(SOUNDFONTS, "none", soundfonts.Soundfont(str(tmp_path / "none.sf2"), "fluid-soundfont-gm"))
    with pytest.raises(UserError, match=r"none\.sf2 is missing.*apt-get install fluid-soundfont-gm"):
        soundfonts._load("none")
    monkeypatch.setattr(kits, "FOLDER", tmp_path)
    with pytest.raises(UserError, match="nothing.flac is missing.*apt-get install sonic-pi-samples"):
        kits._shot("nothing")


# ---------------------------------------------------------------------------------------------------------------------- Kits


def test_notice_names_every_recording_and_its_package_says_cc0():
    notice = SampledCorpus(0).notice
    assert re.findall(r"^  (\w+) +\S.*freesound\.org", notice, re.MULTILINE) == list(kits.SHOTS)
    copyrights = pathlib.Path("/usr/share/doc/sonic-pi-samples/copyright")
    if copyrights.exists():
        text = copyrights.read_text(encoding="utf-8")
        licences = {name: re.search(rf"^Files: etc/samples/{name}\.flac\n(?:.+\n)*?License: (.*)$", text, re.MULTILINE)[1] for name in kits.SHOTS}
        assert set(licences.values()) == {"CC0"}


@needs_samples
def test_a_closed_hat_damps_an_open_one():
    kit = kits.KITS["acoustic"][-1]
    hats = [Tone(46, 0.0, 0.1, 100), Tone(42, 0.25, 0.3, 100)]
    opened, damped = (kits._strike(tones, kit, num_samples=24000, rng=np.random.default_rng(0)) for tones in (hats[:1], hats))
    assert np.abs(opened[12000:]).max() > 0.01 > np.abs(damped[12000:]).max()
    np.testing.assert_array_equal(opened[:6000], damped[:6000])


@needs_samples
def test_strokes_of_a_recorded_kit_are_where_they_are_written():
    """A loud stroke is the hard recording, and beyond the end of the clip nothing sounds."""
    kit = kits.KITS["acoustic"][-1]
    strokes = [Tone(36, 0.5, 0.6, 127), Tone(38, 0.99, 1.1, 40), Tone(38, 1.5, 1.6, 127)]
    wave = kits._strike(strokes, kit, num_samples=24000, rng=np.random.default_rng(0))
    assert not wave[:12000].any() and wave.shape == (24000,)
    kick, rest = kits._shot("drum_bass_hard")[:11000], wave[12000:23000]
    assert np.dot(kick, rest) / np.linalg.norm(kick) / np.linalg.norm(rest) == pytest.approx(1.0)


# ---------------------------------------------------------------------------------------------------------------------- Mixing


def test_loudness_is_that_of_another_implementation():
    meter = pyloudnorm.Meter(SAMPLE_RATE_HZ)
    time = np.arange(4 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    waves = [np.sin(2 * np.pi * hz * time).astype(np.float32) for hz in (60, 997, 7000)] + [noise(96000) * 0.1, noise(96000) * np.repeat([0.3, 0.02], 48000)]
    for wave in waves:
        assert mixing.loudness_lufs(wave.astype(np.float32)) == pytest.approx(meter.integrated_loudness(wave.astype(np.float64)), abs=0.3)
    assert mixing.loudness_lufs(np.zeros(24000, np.float32)) == -np.inf


def test_parts_come_to_their_levels():
    parts = {"lead": noise(48000), "drums": 1e-3 * noise(48000, 1), "bass": np.zeros(48000, np.float32)}
    offsets = []
    for seed in range(40):
        balanced = mixing.balance(parts, rng=np.random.default_rng(seed))
        assert list(balanced) == ["lead", "drums"]
        offsets.append(mixing.loudness_lufs(balanced["drums"]) - mixing.loudness_lufs(balanced["lead"]))
    assert np.mean(offsets) == pytest.approx(mixing.LEVELS_DB["drums"], abs=0.7)
    assert 0.8 < np.std(offsets) < 2.2


@pytest.mark.parametrize("dynamics", DYNAMICS)
def test_loudness_follows_the_dynamics(dynamics):
    parts = {"lead": 0.1 * noise(48000), "drums": 0.02 * noise(48000, 1)}
    waves = mixing.master(parts, num_samples=48000, room="room", colour="clean", dynamics=dynamics, rng=np.random.default_rng(0))
    assert mixing.loudness_lufs(waves["mix"]) == pytest.approx(mixing.LOUDNESS_LUFS[dynamics], abs=0.7)


def test_the_limiter_allows_no_peak():
    rng = np.random.default_rng(0)
    magnitude = np.abs(rng.standard_normal(24013).astype(np.float32)) * np.where(rng.random(24013) < 0.0005, 8, 0.2).astype(np.float32)
    gain = mixing._limit(magnitude)
    assert (magnitude * gain).max() <= mixing.PEAK and gain.max() == 1.0
    assert np.abs(np.diff(gain)).max() < 0.02


def test_compression_lowers_what_is_loud():
    wave = noise(72000) * np.repeat([0.05, 0.5, 0.05], 24000).astype(np.float32)
    gain = mixing._compression(wave)
    assert gain[12000] == 1.0 and 0.5 < gain[40000] < 0.9
    assert (mixing._compression(np.zeros(240, np.float32)) == 1).all()


def test_colours_and_rooms_sound_as_they_are_called():
    lead = 0.1 * noise(96000)
    waves = {
        (room, colour): mixing.master({"lead": lead}, num_samples=96000, room=room, colour=colour, dynamics="medium", rng=np.random.default_rng(1))["lead"]
        for room in ROOMS
        for colour in COLOURS
    }
    middle = {key: power_db(wave, 800, 2000) for key, wave in waves.items()}
    assert middle["dry", "phone"] - power_db(waves["dry", "phone"], 30, 150) > 25
    assert middle["dry", "phone"] - power_db(waves["dry", "phone"], 5000, 11000) > 25
    for colour, drop in (("tape", 4), ("vinyl", 1)):
        dull = [middle["dry", each] - power_db(waves["dry", each], 9500, 11500) for each in (colour, "clean")]
        assert dull[0] - dull[1] > drop
    burst = np.concatenate([lead[:24000], np.zeros(72000, np.float32)])
    tails = []
    for room in ROOMS:
        wave = mixing.master({"lead": burst}, num_samples=96000, room=room, colour="clean", dynamics="medium", rng=np.random.default_rng(1))["lead"]
        tails.append([np.std(wave[start : start + 6000]) for start in (25000, 36000)])
    (dry, _), (room, later_room), (hall, later_hall) = tails
    assert dry < 1.1 * mixing.HISS and min(room, hall) > 5 * mixing.HISS
    assert later_room < 1.5 * mixing.HISS < later_hall / 2


def sine(colour, hz=1000):
    """A sine of 4 s in a colour, and the band, which is the noise of it."""
    wave = np.sin(2 * np.pi * hz * np.arange(96000) / SAMPLE_RATE_HZ).astype(np.float32)
    mixed = mixing.master({"lead": wave}, num_samples=96000, room="dry", colour=colour, dynamics="medium", rng=np.random.default_rng(0))
    return mixed["lead"].astype(np.float64), mixed["band"].astype(np.float64)


def test_tape_wavers_by_little():
    for colour, least, most in (("tape", 3e-4, 4e-3), ("clean", 0.0, 1e-4)):
        lead, _ = sine(colour)
        lead = scipy.signal.sosfiltfilt(scipy.signal.butter(2, (900, 1100), "bandpass", fs=SAMPLE_RATE_HZ, output="sos"), lead)[6000:-6000]
        hz = np.diff(np.unwrap(np.angle(scipy.signal.hilbert(lead))))[6000:-6000] * SAMPLE_RATE_HZ / (2 * np.pi)
        assert least <= np.std(hz) / 1000 < most and np.mean(hz) == pytest.approx(1000, rel=3e-3)


def test_tape_saturates_and_records_click():
    third = {colour: power_db(sine(colour)[0], 2950, 3050) for colour in ("clean", "tape", "phone")}
    assert min(third["tape"], third["phone"]) > third["clean"] + 20
    peaks = {colour: np.abs(noise).max() / np.std(noise) for colour in ("tape", "vinyl") for noise in [sine(colour)[1]]}
    assert peaks["tape"] < 6 and peaks["vinyl"] > 9


def test_the_end_of_a_clip_fades_out():
    waves = mixing.master({"lead": noise(24000)}, num_samples=24000, room="dry", colour="clean", dynamics="loud", rng=np.random.default_rng(0))
    assert np.abs(waves["mix"][-5:]).max() < 0.02 < np.abs(waves["mix"][-2400:]).max()
