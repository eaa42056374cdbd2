"""Meshes in and out, for the tasks that have shapes."""

from fewstep.tasks.meshes.glb import Motion, write_glb
from fewstep.tasks.meshes.mesh import Mesh, read_meshes

__all__ = ["Mesh", "Motion", "read_meshes", "write_glb"]
