"""lk.nn.MultiheadAttention against torch.nn.MultiheadAttention."""

import pytest
import torch

import lepton_kernels as lk

OPTIONS = [
    {},
    {"batch_first": True},
    {"bias": False, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
    {"kdim": 12, "vdim": 10, "batch_first": True},
]


def pair(**options):
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(24, 3, **options)
    ours = lk.nn.MultiheadAttention(24, 3, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def masks(batch, rows, columns):
    padding = torch.zeros(batch, columns, dtype=torch.bool)
    padding[0, -2:] = True
    added = torch.randn(rows, columns)
    per_head = torch.rand(batch * 3, rows, columns) > 0.8
    per_head[..., 0] = False
    return [
        {},
        {"key_padding_mask": padding},
        {"attn_mask": added},
        {"attn_mask": per_head},
        {"attn_mask": added, "key_padding_mask": padding.float() * -3},
        {"attn_mask": per_head, "key_padding_mask": padding},
    ]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("which", range(6))
def test_values_and_gradients(options, which):
    ours, theirs = pair(**options)
    kdim, vdim = options.get("kdim", 24), options.get("vdim", 24)
    sizes = [(2, 5, 24), (2, 7, kdim), (2, 7, vdim)]
    inputs = [torch.randn(s, requires_grad=True) for s in sizes]
    given = inputs if options.get("batch_first") else [x.transpose(0, 1) for x in inputs]
    mask = masks(2, 5, 7)[which]
    results = []
    for module in (ours, theirs):
        out, weights = module(*given, need_weights=False, **mask)
        assert weights is None
        results.append(
            (out, *torch.autograd.grad(out.square().sum(), [*inputs, *module.parameters()]))
        )
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention_and_causal(batch_first):
    ours, theirs = pair(batch_first=batch_first)
    x = torch.randn(4, 4, 24)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(4)
    expected, _ = theirs(x, x, x, need_weights=False, attn_mask=mask, is_causal=True)
    for given in ({"attn_mask": mask}, {"attn_mask": mask, "is_causal": True}, {"is_causal": True}):
        out, _ = ours(x, x, x, need_weights=False, **given)
        assert torch.allclose(out, expected, atol=1e-5)
    extra, their_extra = pair(batch_first=batch_first, add_zero_attn=True, add_bias_kv=True)
    expected, _ = their_extra(x, x, x, need_weights=False, attn_mask=mask)
    out, _ = extra(x, x, x, need_weights=False, is_causal=True)
    assert torch.allclose(out, expected, atol=1e-5)


def test_without_a_batch_and_with_weights():
    ours, theirs = pair()
    x = torch.randn(6, 24)
    padding = torch.tensor([False] * 5 + [True])
    expected, expected_weights = theirs(x, x, x, key_padding_mask=padding)
    out, none = ours(x, x, x, key_padding_mask=padding, need_weights=False)
    assert none is None
    assert torch.allclose(out, expected, atol=1e-5)
    out, weights = ours(x, x, x, key_padding_mask=padding)
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.allclose(weights, expected_weights, atol=1e-6)


def test_dropout_only_in_training():
    ours, theirs = pair(batch_first=True, dropout=0.5)
    x = torch.randn(2, 8, 24)
    expected, _ = theirs.eval()(x, x, x, need_weights=False)
    assert torch.allclose(ours.eval()(x, x, x, need_weights=False)[0], expected, atol=1e-5)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(ours.train()(x, x, x, need_weights=False)[0])
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_autocast(options):
    ours, theirs = pair(**options)
    queries = torch.randn(4, 4, 24)
    keys = torch.randn(4, 4, options.get("kdim", 24))
    values = torch.randn(4, 4, options.get("vdim", 24))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = ours(queries, keys, values, need_weights=False)
        expected, _ = theirs(queries, keys, values, need_weights=False)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected.float(), atol=2e-2)


def test_a_fully_masked_query_is_finite():
    ours, _ = pair(batch_first=True)
    x = torch.randn(1, 3, 24, requires_grad=True)
    padding = torch.ones(1, 3, dtype=torch.bool)
    out, _ = ours(x, x, x, key_padding_mask=padding, need_weights=False)
    assert torch.equal(out, ours.out_proj.bias.expand_as(out))
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (grad == 0).all()


def test_from_torch_refuses():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.MultiheadAttention, got Linear"):
        lk.nn.MultiheadAttention.from_torch(torch.nn.Linear(4, 4))


def test_from_torch_shares_parameters():
    _, theirs = pair(batch_first=True)
    fused = lk.nn.MultiheadAttention.from_torch(theirs)
    assert fused.in_proj_weight is theirs.in_proj_weight
    x = torch.randn(2, 5, 24)
    expected, _ = theirs(x, x, x, need_weights=False)
    assert torch.allclose(fused(x, x, x, need_weights=False)[0], expected, atol=1e-5)


def test_messages():
    ours, _ = pair(batch_first=True)
    x = torch.randn(2, 5, 24)
    with pytest.raises(ValueError, match=r"attn_mask must have shape \(5, 5\) or \(6, 5, 5\), got"):
        ours(x, x, x, need_weights=False, attn_mask=torch.zeros(4, 5))
    with pytest.raises(
        ValueError, match=r"key_padding_mask must have shape \(2, 5\), got \(5, 2\)"
    ):
        ours(x, x, x, need_weights=False, key_padding_mask=torch.zeros(5, 2))
    with pytest.raises(ValueError, match="query must have shape"):
        ours(x[None], x, x, need_weights=False)


def test_inside_a_transformer_encoder_layer():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(24, 3, 48, dropout=0.0, batch_first=True).train()
    x = torch.randn(2, 5, 24)
    expected = layer(x)
    layer.self_attn = lk.nn.MultiheadAttention.from_torch(layer.self_attn)
    assert torch.allclose(layer(x), expected, atol=1e-5)
