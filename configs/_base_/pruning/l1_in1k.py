# L1 filter pruning on ImageNet (PFEC, arXiv 1608.08710). A config names the network's own config beside this file.
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
method = dict(type='mmprune_ext.L1Norm', mutator=dict(type='mmprune_ext.L1Mutator', demo_inputs=(224, 224)))
