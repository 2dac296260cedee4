# DCFF (arXiv 2107.06916) of a network of a task library, from scratch. A config names the network's own config, or its
# parts, beside this file.
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
method = dict(type='mmprune_ext.DCFF')
