# Fine-tuning of a pruned network beside an ensemble of teachers, on CIFAR-10: 40 epochs as after pruning by L1, T = 5.
# A config names a network of configs/_base_/models beside this file, and says by its model which student and teachers.
_base_ = ['../datasets/cifar10_folder.py', '../schedules/cifar_finetune40.py', '../default_runtime.py']
method = dict(type='mmprune_ext.Distilled', temperature=5.)
