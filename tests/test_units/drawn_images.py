"""Steps of drawn networks that take an image: convolutions, norms, parts and joins of channels, gates, views."""

from __future__ import annotations

from tests.test_units.drawn_base import MOST_CHANNELS, Draft, Map, step

FEWEST_PLACES = 4


def strided(size: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """Return the size of what a layer of this stride makes that else keeps the size."""
    return tuple((places - 1) // stride + 1 for places in size)


def halves(x: Map) -> bool:
    """Whether an image is large enough to lose half of its rows and columns."""
    return min(x.size) >= 2 * FEWEST_PLACES - 2


def grows(x: Map) -> bool:
    """Whether an image is small enough to double."""
    return max(x.size) <= 8


def narrow(d: Draft, x: Map) -> Map:
    """Return an image of few enough channels to be put beside another."""
    if x.channels <= MOST_CHANNELS // 2:
        return x
    return d.put(f'{d.layer(f"nn.Conv2d({x.channels}, 8, 1)")}({x})', x, channels=8)


def same_size(d: Draft, x: Map) -> Map:
    """Return an earlier image, brought to the size of one; a convolution of that where there is no other."""
    found = [y for y in d.maps if y.kind == 'image' and y is not x and y.channels <= MOST_CHANNELS // 2]
    y = d.pick(*found[::-1], None)
    if y is None:
        width = d.width()
        return d.put(f'{d.layer(f"nn.Conv2d({x.channels}, {width}, 3, padding=1)")}({x})', x, channels=width)
    if y.size == x.size:
        return y
    how = d.pick(f'F.interpolate({y}, size={x}.shape[2:])', f'F.adaptive_avg_pool2d({y}, {x}.shape[2:])',
                 f'F.interpolate({y}, size={x.size}, mode="bilinear", align_corners=False)')
    return d.put(how, y, size=x.size)


def stem(d: Draft) -> None:
    """Make the first maps of the image."""
    layer = d.layer('nn.Conv2d(3, 8, 3, padding=1)')
    d.put(f'{layer}({d.maps[0]})', d.maps[0], channels=8)


# ---------------------------------------------------------------- layers


@step('image', 5)
def convolution(d: Draft, x: Map) -> None:
    width = d.width()
    kernel, stride, dilation = d.pick((3, 1, 1), (1, 1, 1), (3, 2, 1), (3, 1, 2), (5, 1, 1))
    stride = stride if halves(x) else 1
    groups = d.pick(1, 1, 1, 2 - x.channels % 2)
    mode, bias = d.pick('zeros', 'zeros', 'reflect', 'circular', 'replicate'), d.pick(True, False)
    layer = d.layer(f'nn.Conv2d({x.channels}, {width}, {kernel}, {stride}, {dilation * (kernel // 2)}, {dilation}, '
                    f'{groups}, {bias}, padding_mode={mode!r})')
    d.put(f'{layer}({x})', x, channels=width, size=strided(x.size, stride))


@step('image')
def depthwise(d: Draft, x: Map) -> None:
    width = x.channels * (d.pick(1, 2) if x.channels <= MOST_CHANNELS // 2 else 1)
    kind = d.pick('Conv2d', 'Conv2d', 'ConvTranspose2d')
    layer = d.layer(f'nn.{kind}({x.channels}, {width}, 3, padding=1, groups={x.channels})')
    d.put(f'{layer}({x})', x, channels=width)


@step('image')
def transposed(d: Draft, x: Map) -> None:
    width, groups = d.width(), d.pick(1, 1, 2 - x.channels % 2)
    if not grows(x):
        return d.put(f'{d.layer(f"nn.ConvTranspose2d({x.channels}, {width}, 3, padding=1, groups={groups})")}({x})', x,
                     channels=width)
    layer = d.layer(f'nn.ConvTranspose2d({x.channels}, {width}, 2, 2, groups={groups})')
    d.put(f'{layer}({x})', x, channels=width, size=tuple(2 * places for places in x.size))


@step('image')
def volume(d: Draft, x: Map) -> None:
    """Convolve over the samples' rows as a third dimension."""
    if x.size[0] % 2:
        return
    width = d.width()
    layer = d.layer(f'nn.Conv3d({x.channels}, {width}, 3, padding=1)')
    d.put(f'{layer}({x}.unflatten(2, (2, -1))).flatten(2, 3)', x, channels=width)


@step('image', 4)
def norm(d: Draft, x: Map) -> None:
    c, groups = x.channels, 2 - x.channels % 2
    layer = d.pick(f'nn.BatchNorm2d({c})', f'nn.GroupNorm({groups}, {c})', f'nn.InstanceNorm2d({c}, affine=True)',
                   f'nn.GroupNorm({c}, {c})', f'nn.GroupNorm(1, {c})', f'nn.BatchNorm2d({c}, affine=False)',
                   f'nn.InstanceNorm2d({c}, track_running_stats=True)', f'nn.InstanceNorm2d({c})',
                   f'nn.BatchNorm2d({c}, track_running_stats=False)')
    d.put(f'{d.layer(layer)}({x})', x)


@step('image', 2)
def functional_norm(d: Draft, x: Map) -> None:
    c, ones = x.channels, f'torch.ones({x.channels})'
    kind = d.pick('layer', 'rms', 'batch', 'group', 'instance', 'unit', 'whitened', 'layer of parameters')
    if kind == 'layer':
        text = f'{d.layer(f"nn.LayerNorm({c})")}({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)'
    elif kind == 'rms':
        text = f'{x} * ({x}.square().mean(1, keepdim=True) + 1e-5).rsqrt() * {d.parameter(c, 1, 1)}'
    elif kind == 'batch':
        mean, variance = d.buffer(f'torch.randn({c})'), d.buffer(ones)
        text = f'F.batch_norm({x}, {mean}, {variance}, {d.parameter(c)}, {d.parameter(c)})'
    elif kind == 'group':
        text = f'F.group_norm({x}, {2 - c % 2}, {d.parameter(c)}, {d.parameter(c)})'
    elif kind == 'layer of parameters':
        text = (f'F.layer_norm({x}.movedim(1, -1), ({d.number(x)},), {d.parameter(c)}, {d.parameter(c)})'
                '.movedim(-1, 1)')
    else:
        text = {'instance': f'F.instance_norm({x})', 'unit': f'F.normalize({x}, dim=1)',
                'whitened': f'({x} - {x}.mean((2, 3), keepdim=True)) / ({x}.std((2, 3), keepdim=True) + 1e-3)'}[kind]
    d.put(text, x)


@step('image', 4)
def activation(d: Draft, x: Map) -> None:
    d.put(d.pick(
        f'F.relu({x})', f'{d.layer("nn.ReLU()")}({x})', f'{d.layer(f"nn.PReLU({x.channels})")}({x})',
        f'{d.layer("nn.PReLU()")}({x})', f'F.silu({x})', f'F.gelu({x})', f'F.hardswish({x})', f'{x} * {x}.sigmoid()',
        f'F.leaky_relu({x}, 0.1)', f'{x}.clamp(0, 6)', f'torch.tanh({x})', f'{x} * F.relu6({x} + 3) / 6',
        f'F.elu({x})', f'{x}.abs()', f'F.mish({x})', f'torch.where({x} > 0, {x}, 0.2 * {x})',
        f'F.softshrink({x}, 0.1)', f'{x} * torch.tanh(F.softplus({x}))', f'F.rrelu({x})',
        f'{d.layer("nn.Dropout(0.2)")}({x})', f'{d.layer("nn.Identity()")}({x})', f'F.selu({x})', f'{x} * ({x} > 0.1)',
        f'F.dropout2d({x}, 0.1, self.training)'), x)


@step('image', 2)
def pooled(d: Draft, x: Map) -> None:
    if halves(x) and d.pick(True, False):
        half, floor = strided(x.size, 2), tuple(places // 2 for places in x.size)
        text, size = d.pick((f'F.max_pool2d({x}, 3, 2, 1)', half), (f'F.avg_pool2d({x}, 2)', floor),
                            (f'{x}[:, :, ::2, ::2]', half), (f'F.adaptive_max_pool2d({x}, 4)', (4, 4)),
                            (f'F.lp_pool2d({x}, 2, 2)', floor), (f'F.interpolate({x}, scale_factor=0.5)', floor))
        d.put(text, x, size=size)
    elif grows(x):
        text = d.pick(f'F.interpolate({x}, scale_factor=2.0)',
                      f'F.interpolate({x}, scale_factor=2, mode="bilinear", align_corners=False)',
                      f'{x}.repeat_interleave(2, 2).repeat_interleave(2, 3)')
        d.put(text, x, size=tuple(2 * places for places in x.size))
    else:
        d.put(d.pick(f'F.max_pool2d({x}, 3, 1, 1)', f'F.avg_pool2d({x}, 3, 1, 1)'), x)


@step('image')
def pixels(d: Draft, x: Map) -> None:
    if grows(x) and x.channels % 4 == 0:
        d.put(d.pick(f'F.pixel_shuffle({x}, 2)', f'{d.layer("nn.PixelShuffle(2)")}({x})'), x, channels=x.channels // 4,
              size=tuple(2 * places for places in x.size))
    elif halves(x) and not any(places % 2 for places in x.size) and 4 * x.channels <= MOST_CHANNELS:
        texts = (f'F.pixel_unshuffle({x}, 2)',
                 f'torch.cat([{x}[..., ::2, ::2], {x}[..., 1::2, ::2], {x}[..., ::2, 1::2], {x}[..., 1::2, 1::2]], 1)',
                 f'F.unfold({x}, 2, stride=2).unflatten(2, (-1, {x}.shape[3] // 2))')
        d.put(d.pick(*texts), x, channels=4 * x.channels, size=tuple(places // 2 for places in x.size))


# ---------------------------------------------------------------- parts of channels, and several maps


@step('image', 3)
def parts(d: Draft, x: Map) -> None:
    """Cut the channels; the parts are maps of their own."""
    c, half = x.channels, x.channels // 2
    kind = d.pick('chunk', 'split', 'slices', 'unequal', 'rows', 'sizes', 'every second', 'first')
    if c < 4 or c % 2:
        return
    if kind in ('unequal', 'first'):
        few = d.pick(1, 2)
        first = d.put(f'{x}[:, :{few}]', x, channels=few)
        d.put(f'{x}[:, {few}:]', x, channels=c - few)
        if kind == 'first':
            d.maps.append(first)
        return
    texts = {
        'chunk': (f'{x}.chunk(2, 1)[0]', f'{x}.chunk(2, 1)[1]'),
        'split': (f'{x}.split({d.number(x, 2)}, 1)[0]', f'{x}.split({d.number(x, 2)}, 1)[1]'),
        'slices': (f'{x}[:, :{d.number(x, 2)}]', f'{x}[:, {d.number(x, 2)}:]'),
        'rows': (f'{x}.unflatten(1, (2, -1))[:, 0]', f'{x}.unflatten(1, (2, -1)).unbind(1)[1]'),
        'sizes': (f'{x}.split([{half}, {half}], 1)[0]', f'{x}.narrow(1, {half}, {half})'),
        'every second': (f'{x}[:, ::2]', f'{x}[:, 1::2]')}[kind]
    for text in texts:
        d.put(text, x, channels=half)


@step('image', 3)
def beside(d: Draft, x: Map) -> None:
    """Concatenate maps."""
    x = narrow(d, x)
    y = same_size(d, x)
    d.put(d.pick(f'torch.cat([{x}, {y}], 1)', f'torch.cat([{y}, {x}], dim=1)'), x, channels=x.channels + y.channels)


@step('image', 3)
def combined(d: Draft, x: Map) -> None:
    """Add maps of like channels, or combine them otherwise."""
    y = d.partner(x)
    d.put(d.pick(f'{x} + {y}', f'{x} - {y}', f'{x} * {y}', f'torch.maximum({x}, {y})', f'{x} * {y}.sigmoid()',
                 f'torch.stack([{x}, {y}]).sum(0)', f'torch.stack([{x}, {y}], 1).amax(1)',
                 f'torch.add({x}, {y}, alpha=2)', f'torch.where({x} > 0, {x}, {y})', f'torch.lerp({x}, {y}, 0.3)',
                 f'torch.stack([{x}, {y}], 2).mean(2)', f'sum([{x}, {y}, {x}])'), x)


@step('image', 3)
def residual(d: Draft, x: Map) -> None:
    c, width = x.channels, d.width()
    first, second = d.layer(f'nn.Conv2d({c}, {width}, 3, padding=1)'), d.layer(f'nn.Conv2d({width}, {c}, 1)')
    before, after = d.layer(f'nn.BatchNorm2d({width})'), d.layer(f'nn.BatchNorm2d({c})')
    branch = f'{second}(F.relu({before}({first}({x}))))'
    d.put(d.pick(f'{x} + {branch}', f'F.relu({x} + {after}({branch}))', f'{x} + 0.5 * {branch}',
                 f'{x} + {d.parameter(c, 1, 1)} * {branch}', f'{after}({x}) + {branch}'), x)


@step('image', 2)
def shuffled(d: Draft, x: Map) -> None:
    """Move channels to other places."""
    rows = f'(2, {d.number(x, 2)})' if x.channels % 2 == 0 else '(1, -1)'
    number = d.number(x)
    d.put(d.pick(
        f'{x}.unflatten(1, {rows}).transpose(1, 2).flatten(1, 2)',
        f'{x}.view({x}.shape[0], 2, -1, *{x}.shape[2:]).transpose(1, 2).reshape({x}.shape[0], {number}, *{x}.shape[2:])'
        if x.channels % 2 == 0 else f'{x}.flip(1)',
        f'{d.layer(f"nn.ChannelShuffle({2 - x.channels % 2})")}({x})', f'{x}.flip(1)', f'{x}.roll(1, 1)',
        f'{x}[:, torch.arange({number} - 1, -1, -1)]', f'{x}.index_select(1, torch.arange({number}))',
        f'torch.cat(list({x}.split(1, 1))[::-1], 1)'), x)


@step('image', 3)
def gate(d: Draft, x: Map) -> None:
    c, few = x.channels, d.pick(4, 6)
    kind = d.pick('squeeze', 'linear', 'space', 'glu', 'conv', 'mask', 'scale', 'places', 'one', 'sum', 'context')
    if kind in ('squeeze', 'linear'):
        layer = 'nn.Conv2d({0}, {1}, 1)' if kind == 'squeeze' else 'nn.Linear({0}, {1})'
        down, up = d.layer(layer.format(c, few)), d.layer(layer.format(few, c))
        pooled = f'{x}.mean((2, 3), keepdim=True)' if kind == 'squeeze' else f'{x}.mean((2, 3))'
        weights = d.let(f'torch.sigmoid({up}(F.relu({down}({pooled}))))')
        text = f'{x} * {weights}' if kind == 'squeeze' else f'{x} * {weights}[:, :, None, None]'
    elif kind == 'space':
        text = f'{x} * torch.sigmoid({d.layer(f"nn.Conv2d({c}, 1, 3, padding=1)")}({x}))'
    elif kind == 'glu' and c % 2 == 0 and c > 2:
        first, second = d.let(f'{x}.chunk(2, 1)[0]'), d.let(f'{x}.chunk(2, 1)[1]')
        d.put(d.pick(f'F.glu({x}, 1)', f'{first} * {second}.sigmoid()', f'{first} * {second}'), x, channels=c // 2)
        return
    elif kind == 'context':
        mask = d.let(f'{d.layer(f"nn.Conv2d({c}, 1, 1)")}({x}).flatten(2).softmax(-1)')
        text = f'{x} + (({x}.flatten(2) @ {mask}.transpose(1, 2)).unsqueeze(-1))'
    elif kind == 'sum':
        text = f'{x} * torch.tanh({x}.sum(1, keepdim=True))'
    else:
        text = {'conv': f'{x} * {d.layer(f"nn.Conv2d({c}, {c}, 1)")}({x}).sigmoid()', 'mask': f'{x} * ({x} > 0.2)',
                'scale': f'{x} * {d.parameter(c, 1, 1)} + {d.parameter(1, c, 1, 1)}',
                'places': f'{x} + {d.parameter(1, c, *x.size)}', 'one': f'{x} * {d.parameter(1)}',
                }.get(kind, f'{x} * {d.buffer(f"torch.rand({c}, 1, 1) + 0.5")}')
    d.put(text, x)


@step('image', 2)
def shared(d: Draft, x: Map) -> None:
    """Call one layer twice."""
    c, width = x.channels, d.width()
    same, other = d.layer(f'nn.Conv2d({c}, {c}, 3, padding=1)'), d.layer(f'nn.Conv2d({c}, {width}, 1)')
    norm, y = d.layer(f'nn.BatchNorm2d({c})'), d.partner(x)
    text, channels = d.pick(
        (f'{same}(F.relu({same}({x})))', c), (f'{other}({x}) + {other}({y})', width),
        (f'{norm}({x}) + {norm}({y})', c), (f'{x} + {same}({norm}({same}({x})))', c),
        (f'{other}({x}) + F.conv2d({y}, {other}.weight)', width),
        (f'{other}(torch.cat([{x}, {y}], 0)).chunk(2, 0)[0]', width), (f'{other}({x}) * {other}({x}.flip(3))', width))
    d.put(text, x, channels=channels)


# ---------------------------------------------------------------- weights of one's own, and computed ones


@step('image', 2)
def own_weight(d: Draft, x: Map) -> None:
    c, width = x.channels, d.width()
    weight, bias, kernel = d.parameter(width, c, 3, 3), d.parameter(width), 'padding=1'
    norm = f'({weight}.square().sum((1, 2, 3), keepdim=True) + 1e-6).rsqrt()'
    matrix, back = d.parameter(c, width), d.parameter(width, c)
    text = d.pick(
        f'F.conv2d({x}, {weight}, {bias}, {kernel})', f'F.conv2d({x}, {weight} * 0.1, {kernel})',
        f'F.conv2d({x}, {weight} * {norm}, {bias}, {kernel})',
        f'F.conv_transpose2d({x}, {weight}.transpose(0, 1), {kernel})',
        f'({x}.movedim(1, -1) @ {matrix}).movedim(-1, 1)', f'F.linear({x}.permute(0, 2, 3, 1), {back}, {bias}).permute('
        '0, 3, 1, 2)', f'torch.einsum("nchw,co->nohw", {x}, {matrix})',
        f'F.conv2d({x}, {back}[:, :, None, None])', f'F.conv2d({x}, {back}.view({width}, {c}, 1, 1))',
        f'F.conv2d({x}, {weight} - {weight}.mean((1, 2, 3), keepdim=True), {kernel})',
        f'F.conv2d({x}, {weight} * {d.parameter(width, 1, 1, 1)}, {bias}, {kernel})')
    d.put(text, x, channels=width)


@step('image', 2)
def computed_weight(d: Draft, x: Map) -> None:
    width = d.width()
    conv = f'nn.Conv2d({x.channels}, {width}, 3, padding=1)'
    layer = d.layer(d.pick(
        f'parametrizations.weight_norm({conv})', f'utils.weight_norm({conv})', f'utils.spectral_norm({conv})',
        f'prune.random_unstructured({conv}, "weight", 0.3)', f'parametrizations.spectral_norm({conv})',
        f'parametrizations.weight_norm({conv}, dim=1)'))
    d.put(f'{layer}({x})', x, channels=width)


# ---------------------------------------------------------------- memory, space, statistics


@step('image', 2)
def moved(d: Draft, x: Map) -> None:
    """Change places in space, or nothing but the memory."""
    h, w = x.size
    text, size = d.pick(
        (f'F.pad({x}, (1, 1, 0, 0))', (h, w + 2)), (f'{x}.transpose(2, 3)', (w, h)),
        (f'{x}.roll((1, 2), (2, 3))', x.size),
        (f'{x}.contiguous(memory_format=torch.channels_last)', x.size), (f'{x}.clone()', x.size),
        (f'F.pad({x}, (1, 0, 1, 0), mode="replicate")', (h + 1, w + 1)), (f'{x}[:, :, 1:, :-1]', (h - 1, w - 1)),
        (f'{x}.rot90(1, (2, 3))', (w, h)), (f'{x}.detach()', x.size), (f'torch.cat([{x}, {x}.flip(3)], 3)', (h, 2 * w)),
        (f'{x}.flatten(2).unflatten(2, {x}.shape[2:])', x.size),
        (f'{x}.flatten(0, 1).unflatten(0, (-1, {d.number(x)}))', x.size),
        (f'{x}.permute(1, 2, 3, 0).permute(3, 0, 1, 2)', x.size), (f'{x}.cumsum(2)', x.size),
        (f'F.pad({x}, (1, 1, 1, 1), value=0.5)', (h + 2, w + 2)), (f'{x}.softmax(3)', x.size))
    if min(size) >= FEWEST_PLACES and max(size) <= 16:
        d.put(text, x, size=size)


@step('image')
def in_place(d: Draft, x: Map) -> None:
    y, z = d.partner(x), d.put(f'{x}.clone()', x)
    half = d.number(x, 2)
    d.change(z.name, d.pick(f'{z} += {y}', f'{z}.mul_(2)', f'{z}.relu_()', f'{z}[:, :, :2] = 0', f'{z}[:, :1] *= 3',
                            f'{z}[:, :{half}] += {y}[:, :{half}]', f'{z}[{z} < 0] = 0', f'{z}.copy_({y})',
                            f'{z}[:, :, 1:] = {y}[:, :, 1:]', f'F.relu({z}, inplace=True)'))


@step('image')
def statistic(d: Draft, x: Map) -> None:
    c = x.channels
    if c % 2 == 0 and c > 2 and d.pick(False, True):
        d.put(d.pick(f'{x}.unflatten(1, (2, -1)).amax(1)', f'{x}.unflatten(1, (-1, 2)).amax(2)',
                     f'{x}.unflatten(1, (2, -1)).sum(1)', f'{x}.unflatten(1, (-1, 2)).mean(2)'), x, channels=c // 2)
        return
    d.put(d.pick(f'{x} - {x}.mean(1, keepdim=True)', f'{x}.softmax(1)', f'{x} - {x}.mean((2, 3), keepdim=True)',
                 f'{x} / ({x}.norm(dim=1, keepdim=True) + 1)', f'{x}.sort(1).values',
                 f'{x} * {x}.amax((2, 3), keepdim=True)', f'{x} / ({x}.abs().sum() + 1)',
                 f'{x} * {x}.argmax(1, keepdim=True)', f'{x} / ({x}.norm() + 1)'), x)


# ---------------------------------------------------------------- to other kinds of maps


@step('image', 2)
def to_sequence(d: Draft, x: Map) -> None:
    kind, text = d.pick(('tokens', f'{x}.flatten(2).transpose(1, 2)'), ('signal', f'{x}.flatten(2)'),
                        ('tokens', f'{x}.permute(0, 2, 3, 1).flatten(1, 2)'))
    d.put(text, x, kind=kind, size=(x.size[0] * x.size[1],))


@step('image')
def to_vector(d: Draft, x: Map) -> None:
    block = d.pick(1, 1, 4)
    if block == 4 and 4 * x.channels <= 64:
        d.put(d.pick(f'F.adaptive_avg_pool2d({x}, 2).flatten(1)',
                     f'F.adaptive_max_pool2d({x}, 2).view({x}.shape[0], -1)'), x, kind='vector',
              channels=4 * x.channels, size=())
    else:
        d.put(d.pick(f'{x}.mean((2, 3))', f'F.adaptive_avg_pool2d({x}, 1).flatten(1)', f'{x}.amax((2, 3))',
                     f'{x}.flatten(2).mean(-1)', f'{x}[:, :, 0, 0]', f'{x}.sum((-1, -2))',
                     f'{d.layer("nn.AdaptiveAvgPool2d(1)")}({x})[..., 0, 0]'), x, kind='vector', size=())


@step('image')
def channels_last(d: Draft, x: Map) -> None:
    """A ConvNeXt block: a depthwise layer, and linear ones on channels last."""
    c, width = x.channels, d.pick(12, 8)
    depth, norm = d.layer(f'nn.Conv2d({c}, {c}, 3, padding=1, groups={c})'), d.layer(f'nn.LayerNorm({c})')
    wide, back = d.layer(f'nn.Linear({c}, {width})'), d.layer(f'nn.Linear({width}, {c})')
    inside = d.let(f'F.gelu({wide}({norm}({depth}({x}).permute(0, 2, 3, 1))))')
    d.put(d.pick(f'{x} + {back}({inside}).permute(0, 3, 1, 2)',
                 f'{x} + ({d.parameter(c)} * {back}({inside})).permute(0, 3, 1, 2)',
                 f'{back}({inside} * (1 + {inside}.norm(dim=(1, 2), keepdim=True))).movedim(-1, 1)'), x)


@step('image')
def windows(d: Draft, x: Map) -> None:
    """Cut each sample into four windows that a layer takes for samples, and put them together again."""
    if any(places % 4 for places in x.size):
        return
    width, (h, w) = d.width(), (places // 2 for places in x.size)
    cut = d.let(f'{x}.unflatten(2, (2, {h})).unflatten(4, (2, {w})).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)')
    inside = d.let(f'{d.layer(f"nn.Conv2d({x.channels}, {width}, 3, padding=1)")}({cut})')
    d.put(f'{inside}.unflatten(0, (-1, 2, 2)).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)', x, channels=width)


@step('image')
def attention(d: Draft, x: Map) -> None:
    """Attention between places, or between channels."""
    c, width = x.channels, d.pick(4, 6)
    q, k = (d.let(f'{d.layer(f"nn.Conv2d({c}, {width}, 1)")}({x}).flatten(2)') for _ in range(2))
    v = d.let(f'{d.layer(f"nn.Conv2d({c}, {c}, 1)")}({x}).flatten(2)')
    mixed = d.pick(f'{v} @ ({q}.transpose(1, 2) @ {k}).softmax(-1).transpose(1, 2)',
                   f'torch.einsum("nck,nqk->ncq", {v}, torch.einsum("ncq,nck->nqk", {q}, {k}).softmax(-1))',
                   f'{v} @ torch.softmax({q}.transpose(1, 2) @ {k} * {q}.shape[1] ** -0.5, -1)',
                   f'(F.normalize({v}, dim=-1) @ {v}.transpose(1, 2)).softmax(-1) @ {v}')
    d.put(f'{x} + ({mixed}).view_as({x})', x)
