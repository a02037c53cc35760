"""Training a whole network on a random hyperplane, theta = theta_0 + P theta_d (Li et al. 2018)."""

from dctps.subspace.hyperplane import Hyperplane as Hyperplane
from dctps.subspace.hyperplane import project_ as project_
from dctps.subspace.projection import Projection as Projection
from dctps.subspace.projection import build_projection as build_projection
from dctps.subspace.projection import register_projection as register_projection
from dctps.subspace.projections import DenseProjection as DenseProjection
from dctps.subspace.projections import FastfoodProjection as FastfoodProjection
from dctps.subspace.projections import SparseProjection as SparseProjection
