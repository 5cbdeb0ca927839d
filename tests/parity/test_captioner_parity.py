"""Captions of images by captioners with random weights, of small sizes, beside those that transformers' own classes give."""

import numpy as np
import pytest

from musiclm_jax.errors import UserError
from musiclm_jax.interop.captioner import caption_image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.parity

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"a b c d e f g h i j k l m n o p q r s t u v w x y z".split()]
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"image_size": 32, "patch_size": 16}


def tokenizer():
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


def spread(model):
    """Larger weights than usual, so that the words depend on the image."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.normal_(0, 0.5)
    return model.eval()


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    path = tmp_path_factory.mktemp("blip")
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    text = {**SIZES, "encoder_hidden_size": 16, "vocab_size": len(WORDS), "projection_dim": 8, "max_position_embeddings": 64, **ids}
    config = transformers.BlipConfig(text_config=text, vision_config={**SIZES, **IMAGE, "projection_dim": 8}, projection_dim=8, image_text_hidden_size=8)
    model = spread(transformers.BlipForConditionalGeneration(config))
    model.save_pretrained(path)
    processor = transformers.BlipProcessor(transformers.BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer())
    processor.save_pretrained(path)
    return model, processor, path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Files of two images, one of them with an alpha channel."""
    path = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 4), np.uint8)
    Image.new("RGB", (60, 30), (10, 40, 200)).save(path / "sea.jpg")
    Image.fromarray(noise, "RGBA").save(path / "noise.png")
    return [path / "sea.jpg", path / "noise.png"]


def test_blip(blip, images):
    model, processor, folder = blip
    captions = []
    for path in images:
        inputs = processor(images=Image.open(path).convert("RGB"), return_tensors="pt")
        theirs = processor.decode(model.generate(**inputs, max_new_tokens=40)[0], skip_special_tokens=True)
        captions.append(caption_image(path, model=str(folder)))
        assert captions[-1] == theirs.strip()
    assert captions[0] and captions[0] != captions[1]


def test_a_vision_encoder_with_a_text_decoder(images, tmp_path):
    """Its features and its tokenizer are files of their own, without a processor."""
    decoder = transformers.BertConfig(**SIZES, vocab_size=len(WORDS), is_decoder=True, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(transformers.ViTConfig(**SIZES, **IMAGE), decoder)
    config.decoder_start_token_id, config.pad_token_id = 2, 0
    model = spread(transformers.VisionEncoderDecoderModel(config))
    model.generation_config.decoder_start_token_id, model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 3, 0
    model.save_pretrained(tmp_path)
    features = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    for each in (features, tokenizer()):
        each.save_pretrained(tmp_path)
    pixels = features(Image.open(images[0]).convert("RGB"), return_tensors="pt")["pixel_values"]
    theirs = tokenizer().decode(model.generate(pixels, max_new_tokens=40)[0], skip_special_tokens=True)
    assert caption_image(images[0], model=str(tmp_path)) == theirs.strip() != ""


def test_models_that_are_not_there_or_no_captioners_are_errors(blip, images, tmp_path):
    with pytest.raises(UserError, match=r"none: cannot be loaded as AutoImageProcessor .*; name the folder of a downloaded captioner") as error:
        caption_image(images[0], model=str(tmp_path / "none"))
    assert "\n" not in str(error.value)
    text = tmp_path / "text"
    transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=len(WORDS))).save_pretrained(text)
    tokenizer().save_pretrained(text)
    with pytest.raises(UserError, match="text: cannot be loaded as Auto"):
        caption_image(images[0], model=str(text))


def test_damaged_and_missing_weights_are_errors(blip, images, tmp_path):
    model, processor, _ = blip
    processor.save_pretrained(tmp_path)
    state = model.state_dict()
    state.pop("vision_model.embeddings.class_embedding")
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(UserError, match="lacks 1 of the weights of AutoModelForImageTextToText, such as vision_model.embeddings.class_embedding"):
        caption_image(images[0], model=str(tmp_path))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded as AutoModelForImageTextToText"):
        caption_image(images[0], model=str(tmp_path))


def test_a_model_that_says_nothing_is_an_error(blip, images, monkeypatch):
    model, _, folder = blip
    monkeypatch.setattr(type(model), "generate", lambda self, **options: torch.tensor([[2, 3]]))
    with pytest.raises(UserError, match="says nothing of this image; choose another, or describe it in words yourself"):
        caption_image(images[0], model=str(folder))
