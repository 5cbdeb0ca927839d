"""Odd gin files, bindings, and values of each setting; weighed with --dry_run, which trains nothing."""

import re
from collections.abc import Iterator

from checks.odd_calls.calls import Call, Turns, make_odd_paths, odd_paths, put

_TEXTS = (
    *("a", "a =", "= 3", "SEED = ", "SEED: 3", "SEED = {'a': }", "x/y/z = 3", "a.b.c.d = 3", "StageConfig = 3", "@SEED = 3", "%SEED = 3", "é = 3", "\x00"),
    *("SEED = %NOWHERE", "SEED = @Unknown()", "SEED = lambda: 3", "SEED = __import__('os').system('x')", "SEED = 3; import os", "SEED = '\u202e"),
    *("SEED = nan", "SEED = -nan", "SEED = 1e999", "SEED = %SEED", "A = %B\nB = %A\nSEED = %A", "SEED = gin.REQUIRED", "SEED = %gin.REQUIRED"),
    *("SEED = (((", "SEED = " + "(" * 3000, "SEED = " + "9" * 5000, "StageConfig.dim = @StageConfig()"),
    *("import no.such.module", "from __gin__ import dynamic_registration\nimport no_such", "include 'no.gin'", "include 'g.gin'", "include 3"),
    *("fit.FitConfig.parts = ()", "fit.FitConfig.parts = 3", "fit.FitConfig.parts = (@fit.FitConfig(),)", "fit.FitConfig.model = None"),
    *("fit.FitConfig.model = @fit.FitConfig()", "fit.FitConfig.parts = (@prepare.PreparePart(), @prepare.PreparePart())"),
    *("configs.MusicLMConfig.stages = ()", "configs.MusicLMConfig.stages = (3,)"),
)
_BYTES = (b"\xff\xfe\x00", bytes(range(256)), b"SEED = 3\xff", b"\xef\xbb\xbfSEED = 3", b"SEED = 3\r\n", b"SEED = 3\x0c\n")
_BINDINGS = (
    *("", "=", "=3", "SEED", "SEED=", "SEED==3", "SEED=%X", "SEED=@x()", "SEED=(", "SEED=\n3", "SEED=3\nX=4", "é=3", "SEED=\udcff", "a/b.c=3"),
    *("SEED=1" + "0" * 30, "x" * 5000, "SEED=# x", "SEED=b'x'", "SEED=1j", "SEED={}", "SEED={1:{}}", "SEED=None", "SEED=[[[]]]"),
    *("StageConfig.dim=" + "9" * 5000, "StageConfig.dim=True", "StageConfig.dtype=3", "StageConfig.=3", ".dim=3", "/=3", "semantic/=3"),
    *("TEXT_MIX=a", "TEXT_MIX=[['a', 1]]", "TEXT_MIX=((1,2),)", "TEXT_MIX=(3,)", "TEXT_MIX=(('a',),)", "TEXT_MIX=(('a', -1),)"),
    *("MeshConfig.fsdp=0", "MeshConfig.tensor=1000000"),
)
_SIZES = (
    ("codec", "SoundStreamConfig.dim"),
    ("codec", "CodecPart.batch_size"),
    ("codec", "CodecPart.crop_sec"),
    ("semantic", "StageConfig.dim"),
    ("semantic", "StageConfig.num_layers"),
    ("semantic", "semantic/StagePart.batch_size"),
    ("mulan", "TextTowerConfig.vocab_size"),
    ("w2v_bert", "W2vBertConfig.num_clusters"),
)
# Words that begin a setting's name, or follow a dot in it, and the part that reads the setting; "semantic" for all others.
_PARTS = {
    "codec": ("codec", "SoundStream", "Discriminator", "discriminator", "RVQConfig"),
    "w2v_bert": ("w2v_bert", "small"),
    "melody": ("melody",),
    "reranker": ("reranker",),
    "mulan": ("mulan", "resnet", "text_tower"),
    "coarse": ("coarse",),
    "fine": ("fine",),
}


def gin_calls() -> Iterator[Call]:
    weigh = ("train", "codec", "--size", "test", "--dry_run", "--shapes")
    for text in _TEXTS:
        yield Call((*weigh, "--gin_file", "g.gin"), put("g.gin", text + "\n"), f"{text[:60]!r}", "")
    for data in _BYTES:
        yield Call((*weigh, "--gin_file", "g.gin"), put("g.gin", data), f"{data[:20]!r}", "")
    for path in odd_paths("g"):
        yield Call((*weigh, "--gin_file", path), make_odd_paths, names="")
    for binding in _BINDINGS:
        yield Call((*weigh, f"--gin.{binding}"), names="")
    for part, name in _SIZES:
        for number in (10**6, 10**12):
            if number == 10**12 or name != "SoundStreamConfig.dim":  # A codec of 10**6 channels is trained, slowly.
                yield Call(("train", part, "clips", "--size", "test", "--workdir", "w", f"--gin.{name}={number}"), names="", may=("w/*", "w"))
            yield Call(("train", part, "--size", "test", "--dry_run", "--shapes", f"--gin.{name}={number}"), names="")


def setting_calls(config: str) -> Iterator[Call]:
    """One odd value, in turn, for each setting of `config`, a gin file of all settings."""
    deal = {kind: Turns() for kind in ("whole", "real", "other")}
    values = {
        "whole": ("0", "-1", "1000000000000", "0.5", "[]", "'x'", "None", "{'a': 1}", "True"),
        "real": ("0.0", "-1.0", "1e300", "nan", "[]", "'x'", "None", "{'a': 1}", "True"),
        "other": ("''", "()", "(0,)", "(-1, -1)", "0", "[]", "'x'", "None", "{'a': 1}"),
    }
    for name, value in re.findall(r"^([\w/.]+) = (.+)$", config, re.MULTILINE):
        if value.startswith(("@", "%", "\\")):
            continue
        part = next((part for part, words in _PARTS.items() if any(name.startswith(word) or f".{word}" in name for word in words)), "semantic")
        part = "codec" if "quantize" in name or "soundstream" in name else part
        kind = "whole" if re.fullmatch(r"-?\d+", value) else "other" if value[0] in "'([TFN" else "real"
        yield Call(("train", part, "--size", "test", "--dry_run", "--shapes", f"--gin.{name}={deal[kind](values[kind])}"), names="")
