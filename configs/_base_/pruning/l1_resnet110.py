# l1_stages.py with the sensitive convolutions of ResNet-110 left whole.
_base_ = 'l1_stages.py'
ratios = {
    'backbone.layer1.17.conv1': 0.0,
    'backbone.layer2.0.conv1': 0.0,
    'backbone.layer3.0.conv1': 0.0,
}
