"""Stick figures with the 17 joints of COCO, in random poses, seen from the front."""
from dataclasses import dataclass

import cv2
import numpy as np

JOINTS = ('nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder',
          'right_shoulder', 'left_elbow', 'right_elbow', 'left_wrist', 'right_wrist', 'left_hip',
          'right_hip', 'left_knee', 'right_knee', 'left_ankle', 'right_ankle')
# Pairs of joints, numbered from 1 as COCO json does.
SKELETON = ((16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8),
            (7, 9), (8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7))
LIMBS = tuple((JOINTS.index(f'{side}_{a}'), JOINTS.index(f'{side}_{b}'))
              for side in ('left', 'right')
              for a, b in (('shoulder', 'elbow'), ('elbow', 'wrist'),
                           ('hip', 'knee'), ('knee', 'ankle')))
TRUNK = [JOINTS.index(name) for name in ('left_shoulder', 'right_shoulder', 'right_hip',
                                         'left_hip')]
NOSE, EYES, EARS = 0, [1, 2], [3, 4]

# Lengths in units of the height of a figure that stands straight.
HEAD_RADIUS = 0.12
LIMB_WIDTH = 0.075
EAR_RADIUS = 0.035
SHOULDER, HIP = (0.13, 0.29), (0.085, 0.57)
ARM, LEG = (0.17, 0.16), (0.2, 0.2)
HIDING_TURN = 0.6  # a head turned further than this shows one ear


@dataclass(frozen=True)
class Figure:
    """A figure in pixels.

    Attributes:
        joints: float `(17, 2)`, x and y.
        shown: bool `(17,)`; an ear behind the head is not shown.
        head: x and y of the head's middle, `(2,)`.
        height: what a length of 1 is, pixels.
    """

    joints: np.ndarray
    shown: np.ndarray
    head: np.ndarray
    height: float

    def moved(self, offset: np.ndarray) -> 'Figure':
        """Return the figure at another place, to a tenth of a pixel; `offset` is `(2,)`."""
        return Figure((self.joints + offset).round(1), self.shown, self.head + offset, self.height)

    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lowest and the highest x and y that the figure touches, each `(2,)`."""
        ends = np.concatenate([self.joints, self.head[None]])
        radii = np.full(len(ends), LIMB_WIDTH / 2)
        radii[-1], radii[EARS] = HEAD_RADIUS, EAR_RADIUS
        radii = (radii * self.height + 1)[:, None]
        return (ends - radii).min(axis=0), (ends + radii).max(axis=0)


def random_figure(rng: np.random.Generator, height: float) -> Figure:
    """Return a figure in a random pose, somewhere near the origin.

    Args:
        rng: source of the pose.
        height: of the figure when it stands straight, pixels.
    """
    joints = np.zeros((len(JOINTS), 2))
    turn = rng.uniform(-1, 1)  # of the head; 1 is towards the figure's left, the viewer's right
    head = np.array([0.02 * turn, HEAD_RADIUS])
    joints[NOSE] = head + (0.05 * turn, 0.02)
    shown = np.ones(len(JOINTS), dtype=bool)
    for place, side in enumerate((1, -1)):  # left first: on the viewer's right
        joints[EYES[place]] = head + (0.045 * side + 0.03 * turn, -0.03)
        joints[EARS[place]] = head + (HEAD_RADIUS * side, 0)
        shown[EARS[place]] = side * turn < HIDING_TURN
        shoulder, hip = np.array(SHOULDER) * (side, 1), np.array(HIP) * (side, 1)
        upper = rng.uniform(0.2, 2.6)  # angles from straight down, outward, in radians
        lower = upper + rng.uniform(-1.0, 1.6)
        thigh = rng.uniform(0.0, 0.6)
        shin = thigh - rng.uniform(-0.1, 0.6)
        elbow, knee = (_turned(shoulder, ARM[0], upper, side), _turned(hip, LEG[0], thigh, side))
        chain = (shoulder, elbow, _turned(elbow, ARM[1], lower, side),
                 hip, knee, _turned(knee, LEG[1], shin, side))
        joints[5 + place::2] = chain
    angle = rng.uniform(-0.35, 0.35)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * height
    joints, head = joints @ rotation, head @ rotation
    joints[~shown] = head  # a place inside the figure, so that it does not widen the extent
    return Figure(joints, shown, head, height)


def _turned(start: np.ndarray, length: float, angle: float, side: int) -> np.ndarray:
    """Return the end of a limb; `angle` is from straight down, outward to `side`."""
    return start + length * np.array([side * np.sin(angle), np.cos(angle)])


def paint_figure(figure: Figure, canvas: np.ndarray, mask: np.ndarray,
                 colours: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    """Draw a figure in place.

    Args:
        figure: what is drawn.
        canvas: uint8 `(H, W, 3)`.
        mask: uint8 `(H, W)`; set to 1 where the figure is.
        colours: of limbs, trunk, and head, each three numbers in [0, 255].
    """
    points = np.round(figure.joints).astype(int)
    head = tuple(np.round(figure.head).astype(int).tolist())
    limbs, trunk, skin = (tuple(float(value) for value in colour) for colour in colours)
    width = max(2, round(LIMB_WIDTH * figure.height))
    face = max(1, round(0.018 * figure.height))
    head_radius, ear = (max(2, round(radius * figure.height))
                        for radius in (HEAD_RADIUS, EAR_RADIUS))
    for image, paint in ((canvas, (limbs, trunk, skin)), (mask, (1, 1, 1))):
        for start, end in LIMBS:
            cv2.line(image, points[start].tolist(), points[end].tolist(), paint[0], width)
        cv2.fillConvexPoly(image, points[TRUNK].astype(np.int32), paint[1])
        neck = points[TRUNK[:2]].mean(axis=0).round().astype(int)
        cv2.line(image, head, neck.tolist(), paint[2], width)
        for joint in EARS:
            if figure.shown[joint]:
                cv2.circle(image, points[joint].tolist(), ear, paint[2], -1)
        cv2.circle(image, head, head_radius, paint[2], -1)
    for joint in EYES:
        cv2.circle(canvas, points[joint].tolist(), face, (20, 20, 20), -1)
    cv2.circle(canvas, points[NOSE].tolist(), face, (40, 40, 220), -1)
