"""RetinaFace: objects with points and, on request, a mesh, in one pass. Importing this package registers it."""

from modelkit.faces.head import FaceHead
from modelkit.faces.models import retinaface
from modelkit.faces.pyramid import RetinaFacePyramid, SSHContext
from modelkit.faces.targets import FACE_POINTS

__all__ = ["FACE_POINTS", "FaceHead", "RetinaFacePyramid", "SSHContext", "retinaface"]
