import numpy as np
import pytest
import soundfile

from musiclm_jax.audio import writer
from musiclm_jax.audio.writer import open_writer, read_comment
from musiclm_jax.errors import UserError

PIECES = [np.random.default_rng(i).uniform(-1, 1, size) for i, size in enumerate((1000, 1, 0, 24_001))]


def to_int16(wave):
    return np.clip(np.round(wave * 32768), -32768, 32767).astype(np.int16)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_pieces_are_a_file_with_a_comment(tmp_path, suffix):
    path, comment = tmp_path / f"a{suffix}", '{"prompt": "Klavier, ruhig – \u266a"}'
    path.write_bytes(b"an older file " * 100_000)
    with open_writer(path, sample_rate_hz=24_000, comment=comment) as file:
        for piece in PIECES:
            file.write(piece)
    wave, rate = soundfile.read(path, dtype="int16")
    assert rate == 24_000 and read_comment(path) == comment
    np.testing.assert_array_equal(wave, to_int16(np.concatenate(PIECES)))
    assert soundfile.info(path).subtype == "PCM_16"


def test_a_wav_can_be_read_after_each_piece(tmp_path):
    with open_writer(tmp_path / "a.wav", sample_rate_hz=24_000) as file:
        for count, piece in enumerate(PIECES, start=1):
            file.write(piece)
            assert len(soundfile.read(tmp_path / "a.wav")[0]) == sum(map(len, PIECES[:count]))
    assert read_comment(tmp_path / "a.wav") == ""


def test_a_wav_beyond_the_limit_of_its_sizes_is_rf64(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_LARGEST", 2**32 - 1)
    with open_writer(tmp_path / "a.wav", sample_rate_hz=24_000, comment="x") as file:
        file.write(PIECES[0])
        file._bytes, before = file._bytes + 2**32, file._bytes  # As if 4 GB had been written.
        file._file.truncate(len(file._head) + file._bytes)  # A hole.
        file._file.seek(0, 2)
        file.write(PIECES[3])
    info = soundfile.info(tmp_path / "a.wav")
    assert info.format == "RF64" and info.frames == 2**31 + before // 2 + len(PIECES[3])
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        file.seek(2**31 + before // 2)
        np.testing.assert_array_equal(file.read(dtype="int16"), to_int16(PIECES[3]))


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        open_writer(tmp_path / "nowhere" / "a.wav", sample_rate_hz=24_000)
    with pytest.raises(UserError, match="nowhere"):
        open_writer(tmp_path / "nowhere" / "a.flac", sample_rate_hz=24_000)
    (tmp_path / "a.wav").write_bytes(b"no audio")
    with pytest.raises(UserError, match="name a WAV or FLAC file"):
        read_comment(tmp_path / "a.wav")
