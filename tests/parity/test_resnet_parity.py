"""The residual network of MuLan's audio tower against transformers'."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musiclm_jax.models.resnet import ResNet, ResNetConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.parity

SMALL = ResNetConfig(depths=(2, 1, 2), widths=(16, 32, 48), strides=((1, 1), (2, 2), (2, 2)), stem_width=32)


def images(batch=3, height=71, width=40):
    """An odd and an even side, so that both kinds of edge meet the strides."""
    return np.random.default_rng(0).standard_normal((batch, height, width)).astype(np.float32)


def reference(config: ResNetConfig, x: np.ndarray, seed: int = 1):
    """transformers' network of one input channel, every weight and every batch norm's statistics random."""
    torch.manual_seed(seed)
    sizes = {
        "num_channels": 1,
        "embedding_size": config.stem_width,
        "hidden_sizes": [width * (4 if config.bottleneck else 1) for width in config.widths],
        "depths": list(config.depths),
        "layer_type": "bottleneck" if config.bottleneck else "basic",
    }
    model = transformers.ResNetModel(transformers.ResNetConfig(**sizes)).float()

    def statistics(norm, inputs):
        # Random, in units of the root mean square that layer by layer goes in, so that activations stay of order 1. The deviation as
        # the unit would blow up what the inputs differ by, and rounding with it: float32 torch is then 3e-4 from float64 torch.
        rms = inputs[0].square().mean(dim=(0, 2, 3)).sqrt()
        norm.running_mean.copy_(0.3 * rms * torch.randn_like(rms))
        norm.running_var.copy_(rms**2 * torch.empty_like(rms).uniform_(0.5, 1.5))

    with torch.no_grad():
        hooks = []
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(std=0.3)
                hooks.append(norm.register_forward_pre_hook(statistics))
        model.eval()(torch.from_numpy(x)[:, None])
    for hook in hooks:
        hook.remove()
    return model


def group_norms(module, config: ResNetConfig) -> None:
    """Every batch norm of `module` becomes a group norm with the same scale and shift."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            norm = torch.nn.GroupNorm(max(1, child.num_features // config.norm_group_size), child.num_features, eps=1e-5)
            norm.weight, norm.bias = child.weight, child.bias
            setattr(module, name, norm)
        else:
            group_norms(child, config)


def copy_of(model) -> dict:
    """The weights of transformers' network as ours. A batch norm becomes the scale and shift that its statistics leave of it."""

    def norm(module):
        scale, bias = module.weight.double(), module.bias.double()
        if isinstance(module, torch.nn.BatchNorm2d):
            scale = scale / torch.sqrt(module.running_var.double() + module.eps)
            bias = bias - module.running_mean.double() * scale
        return {"scale": jnp.asarray(scale.detach().numpy(), jnp.float32), "bias": jnp.asarray(bias.detach().numpy(), jnp.float32)}

    def conv(module):
        return {"kernel": jnp.asarray(module.weight.detach().numpy().transpose(2, 3, 1, 0))}  # [D, D_in, T, M] -> [T, M, D_in, D]

    stem = model.embedder.embedder
    params = {"stem": conv(stem.convolution), "stem_norm": norm(stem.normalization)}
    for s, stage in enumerate(model.encoder.stages):
        for b, block in enumerate(stage.layers):
            ours = params[f"stage{s}_block{b}"] = {}
            for i, layer in enumerate(block.layer):
                ours[f"conv{i}"], ours[f"norm{i}"] = conv(layer.convolution), norm(layer.normalization)
            if not isinstance(block.shortcut, torch.nn.Identity):
                ours["shortcut"], ours["shortcut_norm"] = conv(block.shortcut.convolution), norm(block.shortcut.normalization)
    return params


@pytest.mark.parametrize(
    ("config", "norm"),
    [
        pytest.param(ResNetConfig(), "affine", id="ResNet-50"),
        # As MuLan uses it: group norm, our one difference. transformers' network gets it too.
        pytest.param(ResNetConfig(), "group", id="ResNet-50 with group norm"),
        pytest.param(dataclasses.replace(SMALL, bottleneck=False), "affine", id="basic blocks"),
        pytest.param(dataclasses.replace(SMALL, bottleneck=False), "group", id="basic blocks with group norm"),
    ],
)
def test_is_transformers_resnet(config, norm):
    x = images()
    model = reference(config, x)
    if norm == "group":
        group_norms(model, config)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)[:, None]).pooler_output[:, :, 0, 0].numpy()
    ours, params = ResNet(config, norm=norm), copy_of(model)
    shapes = jax.eval_shape(lambda: nn.unbox(ours.init(jax.random.key(0), jnp.asarray(x))))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)  # None missing, none left over.
    features = jax.jit(ours.apply)({"params": params}, jnp.asarray(x))
    assert 0.1 < np.std(expected) < 10  # Else the tolerance would mean nothing.
    np.testing.assert_allclose(features, expected, atol=1e-4, rtol=0)
