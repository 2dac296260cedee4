# chipnet.py for the classifiers of ImageNet.
_base_ = 'chipnet.py'
method = dict(mutator=dict(type='mmprune_ext.ChipNetMutator', demo_inputs=(224, 224)))
