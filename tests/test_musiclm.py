import dataclasses
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_musiclm import tiny_config, tiny_musiclm

from musiclm_jax import bundle, pretrained
from musiclm_jax.audio import loudness
from musiclm_jax.errors import UserError
from musiclm_jax.generation.request import check_request, clip_keys, resolve_sampling
from musiclm_jax.generation.sampler import SamplingConfig
from musiclm_jax.generation.selection import SelectionConfig, best_rows
from musiclm_jax.generation.tracks import StageTrack
from musiclm_jax.models import codec
from musiclm_jax.models.tokenizers import MuLanTokenizer
from musiclm_jax.musiclm import MusicLM

PROMPTS = ["a calm piano melody", "fast drums and bass"]
OTHER = "a slow guitar tune"
STAGES = ("semantic", "coarse", "fine")


@pytest.fixture(scope="module")
def model():
    return tiny_musiclm()


@pytest.fixture(scope="module")
def music(model):
    return model.generate(PROMPTS, seconds=0.2, seed=3, num_samples=2)


def with_config(model, **changes):
    """The same weights under another config."""
    return MusicLM(dataclasses.replace(model.config, **changes), {name: model.variables(name) for name in model.models}, model.text)


def test_shapes_order_and_level(music):
    assert music.wave.shape == (4, 4800) and music.wave.dtype == np.float32 and music.sample_rate_hz == 24_000
    assert music.prompts == (PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1])
    assert np.isfinite(music.wave).all() and np.abs(music.wave).max() <= 10 ** (-1 / 20) + 1e-6
    wave, sample_rate_hz = music
    assert wave is music.wave and sample_rate_hz == 24_000


def test_the_seed_decides(model, music):
    again = model.generate(PROMPTS, seconds=0.2, seed=3, num_samples=2)
    np.testing.assert_array_equal(again.wave, music.wave)
    other = model.generate(PROMPTS, seconds=0.2, seed=4, num_samples=2)
    for row in range(4):
        assert not np.array_equal(other.wave[row], music.wave[row])
    assert not np.array_equal(music.wave[0], music.wave[1])


def test_a_clip_does_not_depend_on_its_batch_mates(model, music):
    alone = model.generate([PROMPTS[1]], seconds=0.2, seed=3)
    np.testing.assert_allclose(alone.wave[0], music.wave[2], atol=1e-5)
    # Nor on whether it is a second sample or a second mention.
    twice = model.generate([PROMPTS[1], PROMPTS[1]], seconds=0.2, seed=3)
    np.testing.assert_allclose(twice.wave, music.wave[2:], atol=1e-5)


def test_prompts_that_the_model_reads_alike_give_the_same_music(model, music):
    alike = model.generate(["  A calm  PIANO melody", "Fást drums and bass"], seconds=0.2, seed=3)
    np.testing.assert_allclose(alike.wave, music.wave[::2], atol=1e-5)


@pytest.mark.parametrize("skipped", [(), ("fine",)])
def test_a_short_clip_is_the_beginning_of_a_long_one_and_of_a_stream(model, monkeypatch, skipped):
    monkeypatch.setattr(loudness, "START_SEC", 0.1)  # Before that all has one gain.
    monkeypatch.setattr(loudness, "_HOP_SEC", 0.05)
    model = with_config(model, skipped_stages=skipped)
    waves = {seconds: model.generate(PROMPTS, seconds=seconds, seed=3).wave for seconds in (0.1, 0.33, 0.4, 1.0)}
    for short in waves.values():
        sure = short.shape[1] // 1200 * 1200 - 6 * 24  # The limiter looks ahead, and the gain to the end of a hop.
        np.testing.assert_array_equal(short[:, :sure], waves[1.0][:, :sure])
    alone = [model.generate(PROMPTS[:1], seconds=1.0, seed=3).wave, model.generate(story=[(0, PROMPTS[0])], seconds=1.0, seed=3).wave]
    alone.append(np.concatenate(list(model.stream(PROMPTS[0], seconds=1.0, seed=3)), axis=1))
    pieces, endless = [], iter(model.stream(PROMPTS[0], seed=3))
    while sum(piece.shape[1] for piece in pieces) < 24_000:
        pieces.append(next(endless))
    for other in alone[1:]:
        np.testing.assert_array_equal(other, alone[0])
    np.testing.assert_array_equal(np.concatenate(pieces, axis=1)[:, : 24_000 - 144], alone[0][:, :-144])


def test_a_story_changes_the_music_from_its_second_line_on(model, monkeypatch):
    monkeypatch.setattr(loudness, "START_SEC", 0.1)
    monkeypatch.setattr(loudness, "_HOP_SEC", 0.05)
    monkeypatch.setattr(MuLanTokenizer, "embed_text", lambda self, texts: np.array([[len(text) % 13, len(text) % 7] for text in texts], np.float32))
    monkeypatch.setattr(MuLanTokenizer, "quantize_text", lambda self, embeddings: np.asarray(embeddings, np.int32))
    one, two = (model.generate(story=story, seconds=1.2, seed=3).wave[0] for story in ([(0, PROMPTS[1])], [(0, PROMPTS[1]), (0.52, OTHER)]))
    same = np.flatnonzero(one != two)[0] / 24_000
    assert 0.51 < same < 0.56
    stream = model.stream(PROMPTS[1], seed=3)
    pieces = iter(stream)
    first = next(pieces)
    stream.prompt = OTHER
    assert stream.prompt == OTHER and stream.seconds == first.shape[1] / 24_000
    assert not np.array_equal(next(pieces), next(itertools.islice(iter(model.stream(PROMPTS[1], seed=3)), 1, None)))


@pytest.mark.parametrize(
    "story, says",
    [
        ([(1, "piano")], "begins at 1 s"),
        ([(0, "piano"), (2, "drums"), (1, "bass")], "has 1 s after 2 s"),
        ([(0, "piano"), (2, "drums"), (2, "bass")], "has 2 s after 2 s"),
        ([(0, "piano"), (5, "drums")], "a line at 5 s, and the music ends at 5 s"),
        ([(0, " ")], "prompt 1 is empty"),
        ([], "no prompt"),
    ],
)
def test_stories_that_cannot_be_told(model, story, says):
    with pytest.raises(UserError, match=says):
        model.generate(story=story, seconds=5)


def test_memory_of_a_stream_does_not_grow(model):
    stream = model.stream(PROMPTS[0], seed=3)
    sizes = []
    for _ in itertools.takewhile(lambda _: stream.seconds < 16, stream):
        sizes.append([track._codes.shape[1] for track in stream._tracks])
    assert len(sizes) > 3 and max(map(max, sizes)) < 60 and sizes[-1] <= sizes[1]


# ---------------------------------------------------------------------------------------------------------------------- Candidates


def coarse_only(model):
    return with_config(model, skipped_stages=("fine",))


def similarities(model):
    """[4, 2]: of the coarse clips that `music` has refined, to either prompt."""
    coarse = coarse_only(model).generate(PROMPTS, seconds=0.2, seed=3, num_samples=2)
    return model.mulan.embed_audio(coarse.wave) @ model.mulan.embed_text(PROMPTS).T


def test_the_candidate_nearest_to_the_prompt_is_kept(model, music):
    chosen = model.generate(PROMPTS, seconds=0.2, seed=3, num_candidates=2)
    assert chosen.prompts == tuple(PROMPTS)
    similarity = similarities(model)
    for row in range(2):
        best = 2 * row + similarity[2 * row : 2 * row + 2, row].argmax()
        np.testing.assert_allclose(chosen.wave[row], music.wave[best], atol=1e-5)


def test_without_the_fine_stage_the_candidate_sounds_as_it_was_judged(model):
    coarse, similarity = coarse_only(model), similarities(model)
    chosen = coarse.generate(PROMPTS, seconds=0.2, seed=3, num_candidates=2)
    candidates = coarse.generate(PROMPTS, seconds=0.2, seed=3, num_samples=2)
    for row in range(2):
        np.testing.assert_allclose(chosen.wave[row], candidates.wave[2 * row + similarity[2 * row : 2 * row + 2, row].argmax()], atol=1e-5)


def test_a_bundle_with_a_reranker_chooses_by_both(model, music):
    heads = model.variables("mulan")["params"]["text_head"]
    other = jax.tree.map(lambda leaf: np.asarray(jax.random.normal(jax.random.key(8), leaf.shape)), heads)
    variables = {name: model.variables(name) for name in model.models}
    variables["reranker"] = {"params": variables["mulan"]["params"] | {"text_head": other}}
    ranked = MusicLM(model.config, variables, model.text)
    chosen = ranked.generate(PROMPTS, seconds=0.2, seed=3, num_candidates=2)
    coarse = coarse_only(model).generate(PROMPTS, seconds=0.2, seed=3, num_samples=2).wave  # The tokens, and so the candidates, are the same.
    by_reranker = ranked.reranker.embed_audio(coarse) @ ranked.reranker.embed_text(PROMPTS).T
    by_mulan, best = similarities(model), []
    for row in range(2):
        own = slice(2 * row, 2 * row + 2)
        best.append([by[own, row].argmax() for by in (by_mulan, by_reranker, by_mulan + by_reranker)])
        np.testing.assert_allclose(chosen.wave[row], music.wave[2 * row + best[row][2]], atol=1e-5)
    assert any(both != mulan for mulan, _, both in best)  # The reranker counts.


def test_the_best_rows_of_each_clip():
    scores = np.array([[0.1, 0.7, 0.7, 0.2], [0.9, 0.0, 0.3, 0.5]])
    assert best_rows(scores, keep=1).tolist() == [1, 4] and best_rows(scores, keep=3).tolist() == [1, 2, 3, 4, 7, 6]


# ---------------------------------------------------------------------------------------------------------------------- Drafts


@pytest.fixture(scope="module")
def choosy():
    """A model with rerankers and without a fine stage, whose drafts are chosen each 0.2 s."""
    return tiny_musiclm(tiny_config(skipped_stages=("fine",), selection=SelectionConfig(draft_sec=0.2)), rerankers=True)


def draw_semantic(model, text, number, *, steps, prompt=None):
    """So many rows of semantic tokens for one prompt, as `generate` draws them with seed 3."""
    streams = {"mulan": np.repeat(model.mulan.text_tokens([text]), number, axis=0)}
    prompt = None if prompt is None else np.repeat(prompt, number // len(prompt), axis=0)[..., None]
    keys = clip_keys([text] * number, seed=3)
    return model.draw_stage(model.config.stage("semantic"), streams, steps=steps, keys=keys, prompt=prompt)[..., 0]


@pytest.mark.parametrize("seconds, ends", [(0.2, (5,)), (0.36, (5, 10, 11)), (0.8, (5, 10, 15, 20))])
def test_drafts_are_chosen_in_rounds(choosy, monkeypatch, seconds, ends):
    went_on, told = [], []
    take = StageTrack.take

    def spy(track, rows, keys):
        take(track, rows, keys)
        if track.spec.name == "semantic" and len(keys) == len(PROMPTS) * 6:
            went_on.append(track.codes(0, track.end)[..., 0])

    monkeypatch.setattr(StageTrack, "take", spy)
    report = lambda stage, done, total: stage == "semantic" and told.append((done, total))  # noqa: E731
    choosy.generate(PROMPTS, seconds=seconds, seed=3, num_drafts=3, num_candidates=2, on_progress=report)
    assert told[0][0] == 0 and all(done <= total for done, total in told)
    window = choosy.config.audio.semantic_tokens(choosy.config.mulan.window_sec)
    assert window in range(10, 15)  # All is judged at 10 tokens, and the last ones at 15.
    for row, prompt in enumerate(PROMPTS):
        text, best = choosy.semantic_reranker.embed_text([prompt])[0], None
        for end in ends:
            drafts = draw_semantic(choosy, prompt, 6, steps=end, prompt=best)
            read = choosy.semantic_reranker.embed_semantic(drafts[:, -window:], token_samples=choosy.config.audio.semantic_samples)
            assert np.ptp(read @ text) > 1e-4
            best = drafts[np.argsort(-read @ text, kind="stable")[:2]]
        np.testing.assert_array_equal(went_on[-1][2 * row : 2 * row + 2], best)
    assert [each.shape[1] for each in went_on] == list(ends)


def test_drafts_want_a_semantic_reranker(model):
    with pytest.raises(UserError, match="the model has no semantic_reranker, .* set num_drafts to 1"):
        model.generate(PROMPTS, seconds=0.4, num_drafts=2)


# ---------------------------------------------------------------------------------------------------------------------- Requests


def test_keys_differ_by_seed_prompt_and_number():
    prompts = ["a", "a", "b", "a"]
    data = np.concatenate([clip_keys(prompts, seed=0), clip_keys(prompts, seed=2**32 - 1)])
    assert len(np.unique(data, axis=0)) == 8
    np.testing.assert_array_equal(clip_keys(["b"], seed=0)[0], data[2])


@pytest.mark.parametrize("seconds", [0.00001, 0.001, 0.04, 0.1634])
def test_any_length_is_exact(model, seconds):
    assert model.generate(["piano"], seconds=seconds).wave.shape == (1, max(1, round(24_000 * seconds)))


def test_sampling_is_passed_on(model):
    greedy = {stage: {"temperature": 0} for stage in STAGES}
    waves = [model.generate(["piano"], seconds=0.2, seed=seed, sampling=greedy).wave for seed in (0, 1)]
    np.testing.assert_array_equal(*waves)
    defaults = {"semantic": SamplingConfig(temperature=0.7, top_k=3), "fine": SamplingConfig()}
    resolved = resolve_sampling(defaults, {"semantic": {"top_k": 5}, "fine": SamplingConfig(temperature=0.1)})
    assert resolved == {"semantic": SamplingConfig(temperature=0.7, top_k=5), "fine": SamplingConfig(temperature=0.1)}


def test_progress_counts_every_token_of_every_stage(model):
    calls = []
    model.generate(["piano", "drums"], seconds=0.2, on_progress=lambda *call: calls.append(call))
    # 2 clips. Two fine windows of 6 frames read 12, two coarse windows of 10 frames, 6 apart, read 16 and so 8 semantic tokens.
    # The first coarse window reads the first semantic one, which is drawn whole: 10 tokens.
    totals = {"semantic": 2 * 10, "coarse": 2 * 12, "fine": 2 * 12 * 2}
    for stage, total in totals.items():
        done = [call[1] for call in calls if call[0] == stage]
        assert calls[[call[0] for call in calls].index(stage)][1] == 0 and [call for call in calls if call[0] == stage][-1][1:] == (total, total)
        assert done == sorted(done)


def test_a_skipped_stage_is_not_run(model):
    seen = []
    wave = coarse_only(model).generate(["a slow guitar tune"], seconds=0.2, on_progress=lambda stage, done, total: seen.append(stage)).wave
    assert wave.shape == (1, 4800) and np.abs(wave).max() > 0 and set(seen) == {"semantic", "coarse"}


def test_weights_are_laid_out_once(model, monkeypatch):
    again = with_config(model)
    again.generate(["piano"], seconds=0.2)
    monkeypatch.setattr("musiclm_jax.models.stage.StageDecoder.prepare", lambda self, params: 1 / 0)
    again.generate(["drums"], seconds=0.3)


def test_requests_that_no_model_can_serve(model):
    for arguments, says in [
        (dict(prompts=[]), "no prompt"),
        (dict(prompts=["x", " "]), "prompt 2"),
        (dict(prompts=["caf\udce9"]), r"prompt 1 is no valid UTF-8: 'caf\\\\udce9'"),
        (dict(seconds=0), "seconds"),
        (dict(seconds=float("nan")), "seconds"),
        (dict(seconds=301), "300"),
        (dict(num_samples=0), "samples"),
        (dict(num_samples=1_000_000), "1000000 clips at once"),
        (dict(num_samples=100, num_candidates=10, num_drafts=10), "10000 clips at once"),
        (dict(num_candidates=0), "candidates"),
        (dict(num_drafts=0), "drafts"),
        (dict(seed=-1), "seed"),
        (dict(sampling={"violin": {}}), "violin"),
        (dict(sampling={"fine": {"temperature": float("nan")}}), "temperature"),
        (dict(sampling={"fine": {"top_k": 1.5}}), "whole"),
        (dict(sampling={"fine": {"heat": 1}}), "heat"),
        (dict(sampling={"coarse": {"guidance": 2.0}}), "guidance=2 of the coarse stage: it was trained without dropping conditions"),
    ]:
        with pytest.raises(UserError, match=says):
            model.generate(**(dict(prompts=["piano"]) | arguments))
    with pytest.raises(ValueError, match="list"):
        model.generate("piano")
    with pytest.raises(UserError, match="6000 clips at once"):  # With the model's own numbers.
        with_config(model, selection=SelectionConfig(num_candidates=60)).generate(["piano"], num_samples=100)
    check_request(["piano"], seconds=300, num_samples=10, num_candidates=12, num_drafts=8)


def test_long_prompts_are_reported_and_cut(model):
    long = "a calm piano melody in a minor key with a slow guitar"
    ((text, kept),) = model.mulan.truncated(["piano", long])
    assert text == long and long.startswith(kept) and 0 < len(kept) < len(long)
    np.testing.assert_array_equal(model.mulan.text_tokens([long]), model.mulan.text_tokens([kept]))


# ---------------------------------------------------------------------------------------------------------------------- Tokenizers


@pytest.mark.parametrize("frames", [4, 11, 12])
def test_acoustic_decoding_in_chunks_is_decoding(model, monkeypatch, frames):
    codes = np.random.default_rng(0).integers(7, size=(2, frames, 3), dtype=np.int32)
    whole = codec.decode(model.config.codec, model.variables("codec"), jnp.asarray(codes))
    monkeypatch.setattr("musiclm_jax.models.tokenizers._DECODE_FRAMES", 4)
    np.testing.assert_allclose(model.acoustic.decode(codes), whole, atol=1e-5)


def test_tokenizers_agree_on_time(model):
    wave = np.random.default_rng(0).normal(size=(2, 24_000 - 7)).astype(np.float32)
    assert model.acoustic.encode(wave).shape == (2, 50, 3)
    assert model.semantic.encode(wave).shape == (2, 25)
    assert model.mulan.audio_tokens(wave).shape == (2, 2)
    assert model.mulan.text_tokens(["piano", "drums"]).shape == (2, 2)
    for embedding in (model.mulan.embed_audio(wave), model.mulan.embed_text(["piano"])):
        np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1, atol=1e-5)


def test_the_embedding_of_a_clip_is_the_mean_over_its_windows(model):
    config, wave = model.config.mulan, np.random.default_rng(0).normal(size=(2, 19_300)).astype(np.float32)
    windows = [model.mulan.embed_audio(wave[:, start : start + config.window_samples]) for start in (0, 2400, 4800, 7200)]
    mean = np.mean(windows, axis=0)
    np.testing.assert_allclose(model.mulan.embed_audio(wave), mean / np.linalg.norm(mean, axis=-1, keepdims=True), atol=1e-6)
    short = wave[:, :5000]  # Shorter than a window: padded with silence.
    np.testing.assert_allclose(model.mulan.embed_audio(short), model.mulan.embed_audio(np.pad(short, ((0, 0), (0, 7000)))), atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------- Bundles


def test_round_trip_is_bit_exact(model, music, tmp_path):
    model.save_pretrained(tmp_path / "bundle")
    loaded = MusicLM.from_pretrained(tmp_path / "bundle")
    assert loaded.config == model.config and loaded.text.to_json() == model.text.to_json()
    for name in model.models:
        ours, theirs = bundle.flatten(model.variables(name)), bundle.flatten(loaded.variables(name))
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    np.testing.assert_array_equal(loaded.generate(PROMPTS, seconds=0.2, seed=3, num_samples=2).wave, music.wave)
    assert sorted(os.listdir(tmp_path / "bundle")) == sorted(["README.md", "config.json", *(f"{name}.safetensors" for name in model.models)])


def test_rerankers_are_files_of_their_own_that_a_bundle_may_lack(choosy, model, tmp_path):
    choosy.save_pretrained(tmp_path / "bundle")
    loaded = MusicLM.from_pretrained(tmp_path / "bundle")
    assert loaded.models == choosy.models and loaded.has("semantic_reranker") and not model.has("reranker")
    wave = loaded.generate(PROMPTS, seconds=0.3, seed=3, num_drafts=3, num_candidates=2).wave
    np.testing.assert_array_equal(wave, choosy.generate(PROMPTS, seconds=0.3, seed=3, num_drafts=3, num_candidates=2).wave)
    assert "semantic_reranker" in pretrained.describe(tmp_path / "bundle")


def test_what_generation_does_not_need_is_read_only_when_asked_for(model, tmp_path):
    with_config(model, skipped_stages=("fine",)).save_pretrained(tmp_path / "bundle")
    loaded = MusicLM.from_pretrained(tmp_path / "bundle")
    for name in ("w2v_bert", "fine"):
        (tmp_path / "bundle" / f"{name}.safetensors").write_bytes(b"")
    loaded.generate(["piano"], seconds=0.2)
    with pytest.raises(UserError, match="w2v_bert"):
        loaded.semantic  # noqa: B018
    with pytest.raises(UserError, match="fine"):
        loaded.variables("fine")


def test_half_precision_bundle_generates(model, tmp_path):
    model.save_pretrained(tmp_path / "bundle", dtype="float16", card="# Mine\n")
    loaded = MusicLM.from_pretrained(tmp_path / "bundle")
    assert loaded.generate(["piano"], seconds=0.2).wave.shape == (1, 4800)
    assert (tmp_path / "bundle" / "README.md").read_text() == "# Mine\n"
    assert "MusicLM bundle" in pretrained.describe(tmp_path / "bundle")


def save_config(model, folder, config):
    """A bundle of the model's weights under another config."""
    models = {name: model.variables(name) for name in model.models}
    bundle.save(folder, config=config, models=models, metadata={"mulan": {pretrained.VOCABULARY: model.text.to_json()}})


@pytest.mark.parametrize(
    "change,says",
    [
        (lambda config: config["w2v_bert"].update(num_clusters=64), "(semantic|w2v_bert).safetensors"),
        (lambda config: config["codec"].update(num_codes=5), "codec.safetensors.*codebooks"),
        (lambda config: config["stages"][1].update(name="rough"), "the file rough.safetensors, a model of its config, is missing"),
        (lambda config: config["stages"][0].update(window_sec="long"), r"model\.stages\[0\]\.window_sec is 'long', expected a number"),
        (lambda config: config["stages"][0]["sampling"].update(guidance=3.0), "it was trained without dropping conditions"),
        (lambda config: config.update(stages={}), r"model\.stages is"),
        (lambda config: config["mulan"]["text"].update(dim=16), "mulan.safetensors"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_named(model, tmp_path, change, says):
    config = model.config.to_dict()
    change(config)
    save_config(model, tmp_path / "bundle", config)
    for load in (MusicLM.from_pretrained, pretrained.describe):
        with pytest.raises(UserError, match=says):
            load(tmp_path / "bundle")


def test_a_bundle_of_before_a_field_takes_its_default_and_one_with_a_former_field_opens(model, music, tmp_path):
    config = model.config.to_dict()
    for stage in config["stages"]:
        del stage["max_windows"], stage["model"]["time_bias"]
        stage["sampling"]["cooling"] = 1.0
    del config["selection"], config["skipped_stages"], config["mulan"]["remat"]
    save_config(model, tmp_path / "bundle", config)
    np.testing.assert_array_equal(MusicLM.from_pretrained(tmp_path / "bundle").generate(PROMPTS, seconds=0.2, seed=3, num_samples=2).wave, music.wave)


def test_missing_models(model):
    with pytest.raises(UserError, match="nowhere"):
        MusicLM.from_pretrained("nowhere")
    with pytest.raises(ValueError, match="mulan"):
        MusicLM(tiny_config(), {}, model.text)
