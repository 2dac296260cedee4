# Ratios of L1 filter pruning in residual CIFAR networks: 10 / 20 / 30% of the first convolution of each block in stages
# 1 / 2 / 3.
ratios = {
    'backbone.layer1.*.conv1': 0.1,
    'backbone.layer2.*.conv1': 0.2,
    'backbone.layer3.*.conv1': 0.3,
}
