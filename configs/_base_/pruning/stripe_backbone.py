# Stripe-wise pruning (arXiv 2009.14410) of the backbone of a detector, segmentor or pose estimator, which is trained
# further from its own weights, by its own schedule. Published are trainings from scratch on CIFAR-10 and ImageNet; a
# config says what sr its shorter training needs: L1 takes lr * sr / (1 - momentum) from a stripe's number, which starts
# at 1, in each iteration, and weight decay its share beside it.
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
method = dict(type='mmprune_ext.StripeWise', threshold=0.01)
