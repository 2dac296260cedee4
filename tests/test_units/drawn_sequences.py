"""Steps of drawn networks that take tokens, a signal of one dimension, or a vector."""

from __future__ import annotations

from tests.test_units.drawn_base import MOST_CHANNELS, Draft, Map, step

# ---------------------------------------------------------------- tokens (N, L, C)


@step('tokens', 2)
def linear(d: Draft, x: Map) -> None:
    width = d.width()
    matrix = d.parameter(x.channels, width)
    d.put(d.pick(f'{d.layer(f"nn.Linear({x.channels}, {width})")}({x})', f'{x} @ {matrix}',
                 f'F.linear({x}, {matrix}.t(), {d.parameter(width)})', f'torch.einsum("nlc,cd->nld", {x}, {matrix})',
                 f'torch.matmul({x}, {matrix} / ({matrix}.norm() + 1))',
                 f'{d.layer(f"parametrizations.weight_norm(nn.Linear({x.channels}, {width}))")}({x})'), x,
          channels=width)


@step('tokens', 2)
def token_norm(d: Draft, x: Map) -> None:
    c = x.channels
    d.put(d.pick(f'{d.layer(f"nn.LayerNorm({c})")}({x})', f'{d.layer(f"nn.RMSNorm({c})")}({x})',
                 f'{d.layer(f"nn.BatchNorm1d({c})")}({x}.transpose(1, 2)).transpose(1, 2)',
                 f'{d.layer(f"nn.LayerNorm({c}, elementwise_affine=False)")}({x})',
                 f'F.layer_norm({x}, {x}.shape[-1:])',
                 f'{x} * ({x}.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * {d.parameter(c)}'), x)


@step('tokens', 2)
def token_activation(d: Draft, x: Map) -> None:
    d.put(d.pick(f'F.gelu({x})', f'F.relu({x})', f'{d.layer("nn.Dropout(0.1)")}({x})', f'F.silu({x})', f'{x}.tanh()',
                 f'F.hardtanh({x})', f'F.relu({x}).square()'), x)


@step('tokens', 2)
def mlp(d: Draft, x: Map) -> None:
    c, width = x.channels, d.pick(12, 8)
    norm, up = d.layer(f'nn.LayerNorm({c})'), d.layer(f'nn.Linear({c}, {width})')
    gate, down = d.layer(f'nn.Linear({c}, {width})'), d.layer(f'nn.Linear({width}, {c})')
    d.put(d.pick(f'{x} + {down}(F.gelu({up}({norm}({x}))))', f'{x} + {down}(F.silu({gate}({x})) * {up}({x}))',
                 f'{norm}({x} + {down}(F.relu({up}({x}))))',
                 f'{x} + {d.parameter(c)} * {down}(F.gelu({up}({x}), approximate="tanh"))'), x)


@step('tokens', 3)
def token_attention(d: Draft, x: Map) -> None:
    c, heads, width = x.channels, 2, d.pick(4, 6)
    qkv, out = d.layer(f'nn.Linear({c}, {3 * heads * width})'), d.layer(f'nn.Linear({heads * width}, {c})')
    q, k, v = (d.let(f'{d.layer(f"nn.Linear({c}, {width})")}({x})') for _ in range(3))
    single = d.layer(f'nn.Linear({width}, {c})')
    scale = d.pick(str(width ** -0.5), f'{q}.shape[-1] ** -0.5')
    kind = d.pick('single', 'heads', 'sdpa', 'module', 'rows', 'einsum', 'linear', 'pooled', 'grouped')
    if kind == 'module':
        if c % 2:
            return
        layer = d.layer(f'nn.MultiheadAttention({c}, 2, batch_first=True)')
        text = f'{x} + {layer}({x}, {x}, {x})[0]'
    elif kind in ('heads', 'sdpa'):
        three = d.let(f'{qkv}({x}).reshape({x}.shape[0], {x}.shape[1], 3, {heads}, {d.pick(width, -1)})'
                      '.permute(2, 0, 3, 1, 4)')
        weights = f'({three}[0] @ {three}[1].transpose(-2, -1) * {scale}).softmax(-1) @ {three}[2]'
        mixed = weights if kind == 'heads' else f'F.scaled_dot_product_attention(*{three})'
        text = f'{x} + {out}(({mixed}).transpose(1, 2).flatten(2))'
    elif kind == 'rows':
        q, k, v = (d.let(f'{qkv}({x}).chunk(3, -1)[{i}].unflatten(-1, ({heads}, -1)).transpose(1, 2)')
                   for i in range(3))
        text = f'{x} + {out}((({q} @ {k}.mT).softmax(-1) @ {v}).transpose(1, 2).flatten(2))'
    else:
        text = {
            'single': f'{x} + {single}(({q} @ {k}.transpose(1, 2) * {scale}).softmax(-1) @ {v})',
            'einsum': f'{x} + {single}(torch.einsum("nqk,nkc->nqc", '
                      f'torch.einsum("nqc,nkc->nqk", {q}, {k}).softmax(-1), {v}))',
            'linear': f'{x} + {single}(F.relu({q}) @ (F.relu({k}).transpose(1, 2) @ {v}))',
            'pooled': f'{x} + ({x} * {d.layer(f"nn.Linear({c}, 1)")}({x}).softmax(1)).sum(1, keepdim=True)',
            'grouped': f'{x} + {single}((({q}.unsqueeze(2) * {k}.unsqueeze(1)).sum(-1)).softmax(-1) @ {v})'}[kind]
    d.put(text, x)


@step('tokens', 2)
def token_parts(d: Draft, x: Map) -> None:
    c = x.channels
    if c % 2 == 0 and c > 2:
        kind = d.pick('chunk', 'glu', 'gated', 'rows', 'unequal')
        half = c // 2
        if kind == 'glu':
            d.put(f'F.glu({x}, -1)', x, channels=half)
        elif kind == 'unequal':
            d.put(f'{x}[..., :1]', x, channels=1)
            d.put(f'{x}[..., 1:]', x, channels=c - 1)
        elif kind == 'rows':
            d.put(f'{x}.unflatten(-1, (2, -1)).sum(2)', x, channels=half)
        else:
            first, second = (d.put(f'{x}.chunk(2, -1)[{i}]', x, channels=half) for i in range(2))
            if kind == 'gated':
                d.put(f'{first} * F.gelu({second})', x, channels=half)


@step('tokens', 2)
def tokens_joined(d: Draft, x: Map) -> None:
    y = d.partner(x)
    if x.channels <= MOST_CHANNELS // 2 and d.pick(True, False):
        d.put(f'torch.cat([{x}, {y}], -1)', x, channels=2 * x.channels)
    else:
        d.put(d.pick(f'{x} + {y}', f'{x} * {y}', f'torch.stack([{x}, {y}], -1).mean(-1)', f'{x} - {y}',
                     f'torch.stack([{x}, {y}]).transpose(0, 1).sum(1)'), x)


@step('tokens', 2)
def placed(d: Draft, x: Map) -> None:
    """Give tokens places, and tokens of one's own beside them."""
    c, (length,) = x.channels, x.size
    text, more = d.pick(
        (f'{x} + {d.parameter(1, length, c)}', 0),
        (f'torch.cat([{d.parameter(1, 1, c)}.expand({x}.shape[0], -1, -1), {x}], 1)', 1),
        (f'{x} * {d.parameter(c)}', 0), (f'{x} + {x}.mean(1, keepdim=True)', 0), (f'{x}[:, 1:]', -1),
        (f'{x} + {d.parameter(1, length, 1)}', 0), (f'{x}.flip(1)', 0), (f'{x}.roll(1, 1)', 0),
        (f'{x} + {d.layer(f"nn.Embedding({length}, {c})")}(torch.arange({x}.shape[1]))', 0))
    if length + more >= 4:
        d.put(text, x, size=(length + more,))


@step('tokens')
def mixed_places(d: Draft, x: Map) -> None:
    """Let a layer read places instead of channels."""
    (length,), width = x.size, d.pick(6, 10)
    first, second = d.layer(f'nn.Linear({length}, {width})'), d.layer(f'nn.Linear({width}, {length})')
    d.put(d.pick(f'{x} + {second}(F.gelu({first}({x}.transpose(1, 2)))).transpose(1, 2)',
                 f'{d.parameter(length, length)}.softmax(-1) @ {x}',
                 f'{d.layer(f"nn.Conv1d({length}, {length}, 1)")}({x})'), x)


@step('tokens')
def recurrent(d: Draft, x: Map) -> None:
    width = d.pick(4, 6)
    kind, both = d.pick('LSTM', 'GRU', 'RNN'), d.pick(False, True)
    layer = d.layer(f'nn.{kind}({x.channels}, {width}, batch_first=True, bidirectional={both})')
    d.put(f'{layer}({x})[0]', x, channels=width * (2 if both else 1))


@step('tokens', 2)
def from_tokens(d: Draft, x: Map) -> None:
    (length,) = x.size
    kind = d.pick('vector', 'image', 'signal', 'vector')
    if kind == 'image' and length % 4 == 0 and 4 <= length // 4 <= 16:
        d.put(f'{x}.transpose(1, 2).unflatten(2, (4, {length // 4}))', x, kind='image', size=(4, length // 4))
    elif kind == 'signal':
        d.put(f'{x}.transpose(1, 2)', x, kind='signal')
    else:
        d.put(d.pick(f'{x}.mean(1)', f'{x}[:, 0]', f'{x}.amax(1)', f'{x}[:, 1:].sum(1)'), x, kind='vector', size=())


# ---------------------------------------------------------------- signals (N, C, L)


@step('signal', 3)
def convolution_1d(d: Draft, x: Map) -> None:
    c, width, groups = x.channels, d.width(), d.pick(1, 1, 2 - x.channels % 2)
    text, channels = d.pick(
        (f'{d.layer(f"nn.Conv1d({c}, {width}, 3, padding=1, groups={groups})")}({x})', width),
        (f'{d.layer(f"nn.Conv1d({c}, {width}, 3, padding=2, dilation=2)")}({x})', width),
        (f'{d.layer(f"nn.Conv1d({c}, {c}, 3, padding=1, groups={c})")}({x})', c),
        (f'{d.layer(f"nn.ConvTranspose1d({c}, {width}, 3, padding=1)")}({x})', width),
        (f'F.conv1d({x}, {d.parameter(width, c, 1)}, {d.parameter(width)})', width))
    d.put(text, x, channels=channels)


@step('signal', 2)
def signal_layer(d: Draft, x: Map) -> None:
    c = x.channels
    d.put(d.pick(f'{d.layer(f"nn.BatchNorm1d({c})")}({x})', f'F.relu({x})', f'{d.layer(f"nn.GroupNorm(1, {c})")}({x})',
                 f'{d.layer(f"nn.PReLU({c})")}({x})', f'F.max_pool1d({x}, 3, 1, 1)', f'F.avg_pool1d({x}, 3, 1, 1)',
                 f'{d.layer(f"nn.InstanceNorm1d({c}, affine=True)")}({x})',
                 f'{x} * {x}.mean(2, keepdim=True).sigmoid()'), x)


@step('signal', 2)
def signals_joined(d: Draft, x: Map) -> None:
    y = d.partner(x)
    if x.channels <= MOST_CHANNELS // 2 and d.pick(True, False):
        d.put(f'torch.cat([{x}, {y}], 1)', x, channels=2 * x.channels)
    else:
        d.put(d.pick(f'{x} + {y}', f'{x} * {y}.sigmoid()', f'torch.stack([{x}, {y}]).amax(0)'), x)


@step('signal', 2)
def from_signal(d: Draft, x: Map) -> None:
    kind = d.pick('vector', 'tokens', 'tail')
    if kind == 'tail' and x.size[0] > 4:
        d.put(f'{x}[..., 1:]', x, size=(x.size[0] - 1,))
    elif kind == 'tokens':
        d.put(d.pick(f'{x}.transpose(1, 2)', f'{x}.mT', f'{x}.permute(2, 0, 1).transpose(0, 1)'), x, kind='tokens')
    else:
        d.put(d.pick(f'{x}.mean(2)', f'{x}.amax(-1)', f'{x}[:, :, -1]'), x, kind='vector', size=())


# ---------------------------------------------------------------- vectors (N, C)


@step('vector', 3)
def vector_layer(d: Draft, x: Map) -> None:
    c, width = x.channels, d.width()
    text, channels = d.pick(
        (f'{d.layer(f"nn.Linear({c}, {width})")}({x})', width), (f'F.relu({x})', c),
        (f'{d.layer(f"nn.BatchNorm1d({c})")}({x})', c), (f'{d.layer(f"nn.LayerNorm({c})")}({x})', c),
        (f'{d.layer(f"nn.PReLU({c})")}({x})', c), (f'{x} @ {d.parameter(c, width)}', width),
        (f'torch.mm({x}, {d.parameter(c, width)})', width),
        (f'torch.addmm({d.parameter(width)}, {x}, {d.parameter(c, width)})', width),
        (f'{d.layer(f"nn.Bilinear({c}, {c}, {width})")}({x}, {x})', width), (f'F.normalize({x}, dim=-1)', c),
        (f'torch.bmm({x}[:, None], {d.parameter(1, c, width)}.expand({x}.shape[0], -1, -1))[:, 0]', width))
    d.put(text, x, channels=channels)


@step('vector', 2)
def vectors_joined(d: Draft, x: Map) -> None:
    c, y = x.channels, d.partner(x)
    if c <= MOST_CHANNELS // 2 and d.pick(True, False):
        d.put(f'torch.cat([{x}, {y}], 1)', x, channels=2 * c)
    elif c % 2 == 0 and c > 2 and d.pick(True, False):
        d.put(d.pick(f'{x}.chunk(2, 1)[0]', f'F.glu({x})', f'{x}[:, {c // 2}:]',
                     f'{x}.view({x}.shape[0], 2, -1)[:, 1]'), x, channels=c // 2)
    else:
        d.put(d.pick(f'{x} + {y}', f'{x} * {y}', f'{x} * F.cosine_similarity({x}, {y})[:, None]',
                     f'{x} * ({x} * {y}).sum(1, keepdim=True).tanh()'), x)


@step('vector', 2)
def decoded(d: Draft, x: Map) -> None:
    """Make maps of a vector, by a layer or by repeating it."""
    kind, width = d.pick('layer', 'repeated', 'unflattened', 'gate'), d.pick(4, 6)
    layer = d.layer(f'nn.Linear({x.channels}, {16 * width})')
    images = [y for y in d.maps if y.kind == 'image' and y.channels == x.channels]
    if kind == 'gate' and images:
        y = images[-1]
        d.put(f'{y} * {x}.sigmoid()[:, :, None, None]', y)
    elif kind == 'repeated':
        d.put(f'{x}[:, :, None, None].expand(-1, -1, 4, 4)', x, kind='image', size=(4, 4))
    else:
        d.put(f'{layer}({x}).view({x}.shape[0], {d.pick(-1, width)}, 4, 4)' if kind == 'layer'
              else f'{layer}({x}).unflatten(1, (-1, 4, 4))', x, kind='image', channels=width, size=(4, 4))
