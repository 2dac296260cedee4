# fisher.py on CIFAR-10. Fine-tunes 40 epochs, as the L1 configs do: published are no CIFAR networks.
# checkpoint is a file that fits the config of the same network in configs/cifar (tools/convert_checkpoint.py makes one
# of the public weights).
_base_ = ['fisher.py', '../datasets/cifar10_folder.py', '../schedules/cifar_finetune40.py', '../default_runtime.py']
method = dict(
    mutator=dict(type='mmprune_ext.FisherMutator', demo_inputs=(32, 32)),
    calibration=dict(num_batches=5, dataloader={{_base_.train_dataloader}}))
