# chipnet.py for the backbone of a detector, segmentor or pose estimator: the budget is a share of the backbone alone.
# Of the FLOPs of Faster R-CNN the backbone has 41% (tools/get_flops.py, 800 x 1344): half of the whole is out of reach.
# A config says how long it searches, as an epoch means other numbers of iterations here. A gate goes as far as lr times
# iterations at most; published are 28,000 iterations at 1e-3, and about that length is kept.
_base_ = 'chipnet.py'
method = dict(budget=dict(scope='backbone'))
