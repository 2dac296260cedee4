# ResNet-34-pruned-B of the paper: the layers of A, by 50 / 60 / 40% in stages 1 / 2 / 3. 10.8% of the parameters and 24.2%
# of the FLOPs are removed, as published.
_base_ = './l1_resnet34_8xb32_in1k_a.py'
model = dict(target_pruning_ratio={
    'backbone.layer1.[12].conv1': 0.5,
    'backbone.layer2.[12].conv1': 0.6,
    'backbone.layer3.[1234].conv1': 0.4,
})
