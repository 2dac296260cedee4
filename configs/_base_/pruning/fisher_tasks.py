# fisher.py beside the configs of the task libraries, which import nothing of this package.
_base_ = 'fisher.py'
custom_imports = dict(imports=['mmprune_ext'], allow_failed_imports=False)
