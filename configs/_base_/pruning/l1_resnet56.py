# l1_stages.py with the sensitive convolutions of ResNet-56 left whole.
_base_ = 'l1_stages.py'
ratios = {
    'backbone.layer1.7.conv1': 0.0,
    'backbone.layer2.0.conv1': 0.0,
    'backbone.layer3.0.conv1': 0.0,
    'backbone.layer3.8.conv1': 0.0,
}
