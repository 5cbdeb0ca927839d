import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_musiclm import tiny_config, tiny_musiclm

from musiclm_jax import bundle
from musiclm_jax import musiclm as musiclm_lib
from musiclm_jax.errors import UserError
from musiclm_jax.generation.sampler import SamplingConfig
from musiclm_jax.models import mulan as mulan_lib
from musiclm_jax.musiclm import MODELS, MusicLM, clip_keys, resolve_sampling

PROMPTS = ["a calm piano melody", "fast drums and bass"]


@pytest.fixture(scope="module")
def model():
    return tiny_musiclm()


@pytest.fixture(scope="module")
def music(model):
    return model.generate(PROMPTS, seconds=0.2, seed=3, num_samples=2)


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


def coarse_only(model):
    return MusicLM(dataclasses.replace(model.config, use_fine=False), {name: model.variables(name) for name in MODELS}, model.text)


def similarities(model):
    """[4, 2]: of the coarse clips that `music` has refined, to either prompt."""
    heard = coarse_only(model).generate(PROMPTS, seconds=0.2, seed=3, num_samples=2)
    return np.asarray(model.mulan.embed_audio(heard.wave) @ model.mulan.embed_text(PROMPTS).T)


def test_the_candidate_nearest_to_the_prompt_is_kept(model, music):
    chosen = model.generate(PROMPTS, seconds=0.2, seed=3, num_candidates=2)
    assert chosen.prompts == tuple(PROMPTS)
    similarity = similarities(model)
    for row in range(2):
        best = 2 * row + similarity[2 * row : 2 * row + 2, row].argmax()
        np.testing.assert_allclose(chosen.wave[row], music.wave[best], atol=1e-5)


def test_without_the_fine_stage_the_candidate_is_heard_as_it_was_judged(model):
    coarse, similarity = coarse_only(model), similarities(model)
    chosen = coarse.generate(PROMPTS, seconds=0.2, seed=3, num_candidates=2)
    candidates = coarse.generate(PROMPTS, seconds=0.2, seed=3, num_samples=2)
    for row in range(2):
        np.testing.assert_allclose(chosen.wave[row], candidates.wave[2 * row + similarity[2 * row : 2 * row + 2, row].argmax()], atol=1e-5)


def test_a_bundle_with_a_reranker_chooses_by_both(model, music):
    heads = model.variables("mulan")["params"]["text_head"]
    other = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(2), leaf.shape), heads)
    variables = {name: model.variables(name) for name in MODELS}
    variables["mulan"] = variables["mulan"] | {"reranker": {"params": variables["mulan"]["params"] | {"text_head": other}}}
    ranked = MusicLM(model.config, variables, model.text)
    chosen = ranked.generate(PROMPTS, seconds=0.2, seed=3, num_candidates=2)
    heard = coarse_only(model).generate(PROMPTS, seconds=0.2, seed=3, num_samples=2).wave  # The tokens, and so the candidates, are the same.
    by_reranker = np.asarray(ranked.reranker.embed_audio(heard) @ ranked.reranker.embed_text(PROMPTS).T)
    by_mulan, best = similarities(model), []
    for row in range(2):
        own = slice(2 * row, 2 * row + 2)
        best.append([by[own, row].argmax() for by in (by_mulan, by_reranker, by_mulan + by_reranker)])
        np.testing.assert_allclose(chosen.wave[row], music.wave[2 * row + best[row][2]], atol=1e-5)
    assert any(both != mulan for mulan, _, both in best)  # The reranker is heard.


@pytest.fixture(scope="module")
def choosy(model):
    """The model with a semantic reranker and without a fine stage."""
    config, variables = model.config, {name: model.variables(name) for name in MODELS}
    spectra = np.random.default_rng(0).normal(-3, 2, (config.w2v_bert.num_clusters, config.mulan.mel.num_mels)).astype(np.float32)
    variables["mulan"] = variables["mulan"] | {"semantic_reranker": {"params": variables["mulan"]["params"], "spectra": spectra}}
    return MusicLM(dataclasses.replace(config, use_fine=False), variables, model.text)


def draw_semantic(model, text, number, **options):
    """So many rows of semantic tokens for one prompt, as `generate` draws them with seed 3."""
    mulan = jnp.repeat(model.mulan.text_tokens([text]), number, axis=0)
    sampling = resolve_sampling({name: model.config.sampling(name) for name in ("semantic", "coarse", "fine")}, None)
    return np.asarray(model.semantic_tokens(mulan, keys=clip_keys([text] * number, seed=3), sampling=sampling, **options))


def test_the_drafts_nearest_to_the_prompt_go_on(model, choosy):
    config, spectra = choosy.config, choosy.variables("mulan")["semantic_reranker"]["spectra"]
    chosen = choosy.generate(PROMPTS, seconds=0.4, seed=3, num_drafts=3)
    every = choosy.generate(PROMPTS, seconds=0.4, seed=3, num_samples=3)
    for row, prompt in enumerate(PROMPTS):
        drafts = draw_semantic(choosy, prompt, 3, count=10)
        mels = np.repeat(spectra[drafts], config.audio.semantic_samples // config.mulan.mel.hop_samples, axis=1)
        read = mulan_lib.embed_audio(config.mulan, choosy.variables("mulan")["params"], jnp.asarray(mels))
        cosines = np.asarray(read @ choosy.mulan.embed_text([prompt])[0])
        assert np.ptp(cosines) > 1e-3
        np.testing.assert_allclose(chosen.wave[row], every.wave[3 * row + cosines.argmax()], atol=1e-5)
    # With as many candidates as drafts would leave, the reranker of waves chooses among the nearest two.
    both = choosy.generate(PROMPTS, seconds=0.4, seed=3, num_drafts=3, num_candidates=2)
    assert both.wave.shape == (2, 9600)
    with pytest.raises(UserError, match="num_drafts"):
        model.generate(PROMPTS, seconds=0.4, num_drafts=2)


@pytest.mark.parametrize("seconds, ends", [(0.36, (4, 9)), (0.8, (5, 10, 15, 20))])
def test_drafts_are_chosen_in_rounds(choosy, monkeypatch, seconds, ends):
    rounds = MusicLM(dataclasses.replace(choosy.config, draft_sec=0.2), {name: choosy.variables(name) for name in MODELS}, choosy.text)
    went_on, told = [], []
    coarse_codes = rounds.coarse_codes
    monkeypatch.setattr(rounds, "coarse_codes", lambda semantic, *args, **options: went_on.append(semantic) or coarse_codes(semantic, *args, **options))
    report = lambda stage, done, total: stage == "semantic" and told.append((done, total))  # noqa: E731
    rounds.generate(PROMPTS, seconds=seconds, seed=3, num_drafts=3, num_candidates=2, on_progress=report)
    total = len(PROMPTS) * 6 * ends[-1]
    assert told[0] == (0, total) and told[-1] == (total, total) and [done for done, _ in told] == sorted(done for done, _ in told)
    window = rounds.config.audio.semantic_tokens(rounds.config.mulan.window_sec)
    assert window in range(10, 15)  # All is heard at 10 tokens, and the last ones at 15.
    for row, prompt in enumerate(PROMPTS):
        text, seen = np.asarray(rounds.semantic_reranker.embed_text([prompt]))[0], None
        for count in ends:
            drafts = draw_semantic(rounds, prompt, 6, count=count, prompt=None if seen is None else jnp.asarray(seen))
            read = np.asarray(rounds.semantic_reranker.embed_semantic(jnp.asarray(drafts[:, -window:]), token_samples=rounds.config.audio.semantic_samples))
            best = drafts[np.argsort(-read @ text, kind="stable")[:2]]
            seen = np.repeat(best, 3, axis=0)
        np.testing.assert_array_equal(went_on[0][2 * row : 2 * row + 2], best)


def test_keys_differ_by_seed_prompt_and_number():
    prompts = ["a", "a", "b", "a"]
    data = jax.random.key_data(jnp.concatenate([clip_keys(prompts, seed=0), clip_keys(prompts, seed=1)]))
    assert len(np.unique(np.asarray(data), axis=0)) == 8
    np.testing.assert_array_equal(jax.random.key_data(clip_keys(["b"], seed=0))[0], data[2])


@pytest.mark.parametrize("seconds", [0.001, 0.04, 0.1634])
def test_any_length_is_exact(model, seconds):
    assert model.generate(["piano"], seconds=seconds).wave.shape == (1, max(1, round(24_000 * seconds)))


def test_sampling_is_passed_on(model):
    greedy = {stage: {"temperature": 0} for stage in ("semantic", "coarse", "fine")}
    waves = [model.generate(["piano"], seconds=0.2, seed=seed, sampling=greedy).wave for seed in (0, 1)]
    np.testing.assert_array_equal(*waves)
    defaults = {"semantic": SamplingConfig(temperature=0.7, top_k=3), "fine": SamplingConfig()}
    resolved = resolve_sampling(defaults, {"semantic": {"top_k": 5}, "fine": SamplingConfig(temperature=0.1)})
    assert resolved == {"semantic": SamplingConfig(temperature=0.7, top_k=5), "fine": SamplingConfig(temperature=0.1)}


def test_progress_counts_every_token_of_every_stage(model):
    calls = []
    model.generate(["piano", "drums"], seconds=0.2, on_progress=lambda *call: calls.append(call))
    # 2 clips, 5 semantic tokens, 10 frames of 1 coarse and 2 fine levels.
    totals = {"semantic": 10, "coarse": 20, "fine": 40}
    for stage, total in totals.items():
        done = [call[1] for call in calls if call[0] == stage]
        assert {call[2] for call in calls if call[0] == stage} == {total}
        assert done[0] == 0 and done[-1] == total and done == sorted(done)


def test_without_the_fine_stage_the_coarse_levels_are_heard(model):
    seen = []
    wave = coarse_only(model).generate(["a slow guitar tune"], seconds=0.2, on_progress=lambda stage, done, total: seen.append(stage)).wave
    assert wave.shape == (1, 4800) and np.abs(wave).max() > 0 and set(seen) == {"semantic", "coarse"}


def test_requests_that_no_model_can_serve(model):
    for arguments, says in [
        (dict(prompts=[]), "no prompt"),
        (dict(prompts=["x", " "]), "prompt 2"),
        (dict(seconds=0), "seconds"),
        (dict(seconds=float("nan")), "seconds"),
        (dict(seconds=301), "300"),
        (dict(num_samples=0), "samples"),
        (dict(num_candidates=0), "candidates"),
        (dict(num_drafts=0), "drafts"),
        (dict(seed=-1), "seed"),
        (dict(sampling={"violin": {}}), "violin"),
        (dict(sampling={"fine": {"temperature": float("nan")}}), "temperature"),
        (dict(sampling={"fine": {"top_k": 1.5}}), "whole"),
        (dict(sampling={"fine": {"heat": 1}}), "heat"),
    ]:
        with pytest.raises(UserError, match=says):
            model.generate(**(dict(prompts=["piano"]) | arguments))
    with pytest.raises(ValueError, match="list"):
        model.generate("piano")


def test_long_prompts_are_reported_and_cut(model):
    long = "a calm piano melody in a minor key with a slow guitar"
    ((text, kept),) = model.mulan.truncated(["piano", long])
    assert text == long and long.startswith(kept) and 0 < len(kept) < len(long)
    np.testing.assert_array_equal(model.mulan.text_tokens([long]), model.mulan.text_tokens([kept]))


# ------------------------------------------------------------------------------ tokenizers


def test_acoustic_decoding_in_chunks_is_decoding(model, monkeypatch):
    from musiclm_jax.models import codec

    codes = jax.random.randint(jax.random.key(0), (2, 11, 3), 0, 7)
    whole = codec.decode(model.config.soundstream, model.variables("soundstream"), codes)
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


# --------------------------------------------------------------------------------- bundles


def test_round_trip_is_bit_exact(model, music, tmp_path):
    model.save_pretrained(tmp_path / "bundle")
    loaded = MusicLM.from_pretrained(tmp_path / "bundle")
    assert loaded.config == model.config and loaded.text.to_json() == model.text.to_json()
    for name in MODELS:
        ours, theirs = bundle.flatten(model.variables(name)), bundle.flatten(loaded.variables(name))
        assert ours.keys() == theirs.keys()
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key])
    np.testing.assert_array_equal(loaded.generate(PROMPTS, seconds=0.2, seed=3, num_samples=2).wave, music.wave)
    assert sorted(os.listdir(tmp_path / "bundle")) == sorted(["README.md", "config.json", *(f"{name}.safetensors" for name in MODELS)])


def test_w2v_bert_is_read_only_when_needed(model, tmp_path):
    model.save_pretrained(tmp_path / "bundle")
    loaded = MusicLM.from_pretrained(tmp_path / "bundle")
    (tmp_path / "bundle" / "w2v_bert.safetensors").write_bytes(b"")
    loaded.generate(["piano"], seconds=0.2)
    with pytest.raises(UserError, match="w2v_bert"):
        loaded.semantic  # noqa: B018


def test_half_precision_bundle_generates(model, tmp_path):
    model.save_pretrained(tmp_path / "bundle", dtype="float16", card="# Mine\n")
    loaded = MusicLM.from_pretrained(tmp_path / "bundle")
    assert loaded.generate(["piano"], seconds=0.2).wave.shape == (1, 4800)
    assert (tmp_path / "bundle" / "README.md").read_text() == "# Mine\n"
    assert "MusicLM bundle" in musiclm_lib.describe(tmp_path / "bundle")


def test_a_config_that_does_not_fit_is_named(model, tmp_path):
    config = model.config.to_dict()
    config["coarse_levels"] = "four"
    bundle.save(tmp_path / "bundle", config=config, models={})
    with pytest.raises(UserError, match="coarse_levels"):
        MusicLM.from_pretrained(tmp_path / "bundle")


def test_missing_models(model):
    with pytest.raises(UserError, match="nowhere"):
        MusicLM.from_pretrained("nowhere")
    with pytest.raises(ValueError, match="mulan"):
        MusicLM(tiny_config(), {}, model.text)
