"""The Python of docs/other_libraries.md runs."""

from tests.test_docs.commands import ROOT, blocks


def test_a_detector_is_pruned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = next(iter(blocks(ROOT / 'docs' / 'other_libraries.md', 'python')))
    names = {}
    exec(compile(block, 'other_libraries.md', 'exec'), names)
    model = names['model'].eval()
    assert model.backbone.body['0'][0].out_channels == 8 and model.backbone.fpn.layer_blocks[0][0].out_channels == 128
    import torch
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    from mmprune_ext.units import UnitSet, slim
    again = slim(fasterrcnn_mobilenet_v3_large_320_fpn(weights_backbone=None), UnitSet.load('units.json')).eval()
    again.load_state_dict(torch.load('compact.pth'))
    image = torch.rand(3, 64, 64)
    with torch.no_grad():
        for mine, other in zip(model([image])[0].values(), again([image])[0].values(), strict=True):
            assert torch.equal(mine, other)
