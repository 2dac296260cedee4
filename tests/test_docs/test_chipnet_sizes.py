"""docs/chipnet_sizes.md has the networks of the published table, what that prints, and the exact counts."""
from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COUNTS = r'([\d,]+)'
LINE = re.compile(rf'\| (\S+) \| \[(\w+)\]\(\.\./(\S+)\) \| {COUNTS} \| (\S+)M \| {COUNTS} \| {COUNTS} \| (\S+)G \|')


def test_sizes():
    rows = {row['network']: row for row in json.loads((ROOT / 'tests/data/published_chipnet.json').read_text())}
    lines = {match[1]: match for match in LINE.finditer((ROOT / 'docs' / 'chipnet_sizes.md').read_text())}
    assert lines.keys() == rows.keys()
    for network, row in rows.items():
        _, config, path, params, printed_params, macs, flops, printed_flops = lines[network].groups()
        assert config == row['config'] and (ROOT / path).is_file()
        assert [printed_params, printed_flops] == row['printed']
        counts = [int(text.replace(',', '')) for text in (params, macs, flops)]
        assert counts == [row.get(key, count) for key, count in zip(('params', 'macs', 'flops_mm'), counts)]
        assert round(counts[0] / 1e6, 2) == float(printed_params)
        assert round(counts[2] / 1e9, 2) == float(printed_flops)
