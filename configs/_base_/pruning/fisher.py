# Group Fisher pruning (arXiv 2108.00708): half of the FLOPs remain, of the whole model; the channels go whose loss by
# memory is smallest, whatever their unit. A config names the network's own config beside this file or one that has it
# as its base, and says by its model how much data it scores on.
method = dict(type='mmprune_ext.Fisher', budget=dict(flops=0.5, spread='global'))
