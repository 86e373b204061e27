"""Which registered model's checkpoints translate by which table; a model that is not listed keeps all names."""

from __future__ import annotations

from modelkit.importing.centernet import CENTERNET_RES, CENTERNET_RESDCN
from modelkit.importing.cornernet import CORNERNET
from modelkit.importing.key_table import KeyTable
from modelkit.importing.princeton_hourglass import PRINCETON_HOURGLASS
from modelkit.importing.pytorch_fcn import PYTORCH_FCN
from modelkit.importing.pytorch_unet import PYTORCH_UNET
from modelkit.importing.retinaface import RETINAFACE_MOBILENET, RETINAFACE_RESNET
from modelkit.importing.torchvision_models import (
    TORCHVISION_KEYPOINT_RCNN,
    TORCHVISION_RCNN,
    TORCHVISION_RESNET_RCNN,
    TORCHVISION_SEMANTIC,
    TORCHVISION_SEMANTIC_AUX,
)
from modelkit.importing.torchvision_one_stage import TORCHVISION_FCOS, TORCHVISION_RETINANET, TORCHVISION_SSD
from modelkit.importing.vainf_deeplab import VAINF_MOBILENET, VAINF_RESNET
from modelkit.importing.yolact import YOLACT_DARKNET, YOLACT_EDGE, YOLACT_RESNET

TABLES: dict[str, KeyTable] = {
    "mask_rcnn": TORCHVISION_RCNN,
    "faster_rcnn": TORCHVISION_RCNN,
    "keypoint_rcnn": TORCHVISION_KEYPOINT_RCNN,
    "keypointrcnn_resnet50_fpn": TORCHVISION_KEYPOINT_RCNN,
    "maskrcnn_resnet50_fpn": TORCHVISION_RESNET_RCNN,
    "fasterrcnn_resnet50_fpn": TORCHVISION_RESNET_RCNN,
    "maskrcnn_resnet50_fpn_v2": TORCHVISION_RCNN,
    "fasterrcnn_resnet50_fpn_v2": TORCHVISION_RCNN,
    "lraspp_mobilenet_v3_large": TORCHVISION_SEMANTIC,
    "deeplabv3_mobilenet_v3_large": TORCHVISION_SEMANTIC_AUX,
    "deeplabv3_resnet50": TORCHVISION_SEMANTIC_AUX,
    "deeplabv3_resnet101": TORCHVISION_SEMANTIC_AUX,
    "fcn_resnet50": TORCHVISION_SEMANTIC_AUX,
    "fcn_resnet101": TORCHVISION_SEMANTIC_AUX,
    "fcn32s": PYTORCH_FCN,
    "fcn16s": PYTORCH_FCN,
    "fcn8s": PYTORCH_FCN,
    "fcn8s_atonce": PYTORCH_FCN,
    "unet": PYTORCH_UNET,
    "unet_bilinear": PYTORCH_UNET,
    "deeplabv3plus": VAINF_RESNET,
    "deeplabv3plus_resnet50": VAINF_RESNET,
    "deeplabv3plus_resnet101": VAINF_RESNET,
    "deeplabv3plus_mobilenet_v2": VAINF_MOBILENET,
    "retinanet_resnet50_fpn": TORCHVISION_RETINANET,
    "retinanet_resnet50_fpn_v2": TORCHVISION_RETINANET,
    "fcos_resnet50_fpn": TORCHVISION_FCOS,
    "ssd300_vgg16": TORCHVISION_SSD,
    "ssdlite320_mobilenet_v3_large": TORCHVISION_SSD,
    "yolact": YOLACT_RESNET,
    "yolact_resnet50": YOLACT_RESNET,
    "yolact_resnet50_pascal": YOLACT_RESNET,
    "yolact_im400": YOLACT_RESNET,
    "yolact_im700": YOLACT_RESNET,
    "yolact_darknet53": YOLACT_DARKNET,
    "yolact_edge": YOLACT_EDGE,
    "yolact_edge_resnet50": YOLACT_EDGE,
    "hourglass": PRINCETON_HOURGLASS,
    "retinaface": RETINAFACE_MOBILENET,
    "retinaface_resnet50": RETINAFACE_RESNET,
    "centernet": CENTERNET_RESDCN,
    "centernet_resdcn101": CENTERNET_RESDCN,
    "centernet_pose": CENTERNET_RESDCN,
    "centernet_resnet18": CENTERNET_RES,
    "centernet_resnet101": CENTERNET_RES,
    "cornernet": CORNERNET,
    "centernet_triplet": CORNERNET,
    "centernet_triplet52": CORNERNET,
}
