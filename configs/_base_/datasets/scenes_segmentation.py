# Drawn scenes with a class a pixel: tools/datasets/draw_scenes.py makes the folder.
# MMPRUNE_DATA is the folder that holds the data sets, for all tasks.
data_root = '{{$MMPRUNE_DATA:data}}/scenes'
# The numbers in the label maps are the places in this list; seven classes with the background.
metainfo = dict(
    classes=('background', 'person', 'plus', 'ring', 'square', 'star', 'triangle'),
    palette=[(0, 0, 0), (220, 20, 60), (0, 0, 230), (0, 150, 150), (250, 170, 30), (106, 0, 228),
             (0, 120, 40)])

data_preprocessor = dict(
    type='SegDataPreProcessor', mean=[127.5] * 3, std=[64.] * 3, bgr_to_rgb=True, pad_val=0,
    seg_pad_val=255, size_divisor=32, test_cfg=dict(size_divisor=32))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    # After Resize: the prediction is compared in the pixels of the file.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(type='BaseSegDataset', data_root=data_root, metainfo=metainfo,
                 img_suffix='.png', seg_map_suffix='.png', reduce_zero_label=False,
                 data_prefix=dict(img_path='images/train', seg_map_path='segmentation/train'),
                 pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(type='BaseSegDataset', data_root=data_root, metainfo=metainfo,
                 img_suffix='.png', seg_map_suffix='.png', reduce_zero_label=False,
                 data_prefix=dict(img_path='images/val', seg_map_path='segmentation/val'),
                 pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_dataloader = val_dataloader
test_evaluator = val_evaluator
