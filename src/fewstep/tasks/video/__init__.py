"""Few-step video: a causal student with a cache, its training, its measures, and streams without end."""

from fewstep.tasks.video.presets import VIDEO, video_method
from fewstep.tasks.video.streams import VideoStream, stream
from fewstep.tasks.video.student import VideoStudent, load_student

__all__ = ["VIDEO", "VideoStream", "VideoStudent", "load_student", "stream", "video_method"]
