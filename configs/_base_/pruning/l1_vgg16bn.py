# What L1 filter pruning takes of the CIFAR VGG-16-BN: the layers that are not sensitive, the first convolution and the
# eighth to the last.
insensitive = [
    'backbone.features.conv0',
    'backbone.features.conv10',
    'backbone.features.conv11',
    'backbone.features.conv12',
    'backbone.features.conv14',
    'backbone.features.conv15',
    'backbone.features.conv16',
]
