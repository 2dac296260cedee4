# chipnet.py for the backbone of a detector, segmentor or pose estimator: the budget is a share of the backbone alone.
# Of Faster R-CNN's FLOPs on 800 x 1344 the backbone has 41%, so that half of the whole is out of reach.
# A config says how long it searches, as an epoch means other numbers of iterations here. A gate goes as far as lr times
# iterations at most; published are 28,000 iterations at 1e-3, and about that length is kept.
_base_ = 'chipnet.py'
method = dict(budget=dict(scope='backbone'))
