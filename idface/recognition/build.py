"""A recogniser from the one word that names it on a command line."""

from idface.names import RECOGNIZERS
from idface.recognition.base import Recognizer


def build_judge(name: str | None, own: Recognizer | None) -> Recognizer:
    """The recogniser that says whose face a model's result is: one by name, the model's own judge, or else dlib's.

    Args:
        name: see `build_recognizer`; None if none was asked for.
        own: the judge that the model was built with.

    Raises:
        ValueError, FileNotFoundError: as `build_recognizer`.
    """
    return build_recognizer(name or "dlib") if name or own is None else own


def build_recognizer(name: str) -> Recognizer:
    """Build a recogniser.

    Args:
        name: one of `RECOGNIZERS`.

    Raises:
        ValueError: unknown name.
        FileNotFoundError: its weights are not there.
    """
    kind, _, detail = name.partition(":")
    match kind, detail:
        case "dlib", "":
            from idface.recognition.dlib_resnet import DlibResNet

            return DlibResNet()
        case "facenet", "vggface2" | "casia-webface":
            from idface.recognition.facenet import FaceNet

            return FaceNet(detail)
        case "mobilefacenet" | "mobilefacenet+flip", file if file:
            from idface.recognition.mobilefacenet import MobileFaceNet

            return MobileFaceNet(file, flip=kind.endswith("+flip"))
        case "lightcnn9" | "lightcnn29", file if file:
            from idface.recognition.light_cnn import LightCNN

            return LightCNN(file, layers=9 if kind == "lightcnn9" else 29)
    raise ValueError(f"There is no recogniser {name!r}; give one of {RECOGNIZERS}")
