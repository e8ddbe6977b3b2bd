"""DDIMScheduler and DDIMInverseScheduler: diffusers' interface, a thin shell over `SamplingPlan`.

schedulers   the two classes, and what they share
levels       ᾱ of every timestep: as plans use it, and as others read, move and change it
methods      plans whose steps go through methods that a subclass has put in the place of ours
identity     how diffusers takes our schedulers for its own
recommended  what a model's folder recommends for its own sampling, and what is used where a call says nothing
"""

from ddim.scheduler.schedulers import DDIMInverseScheduler, DDIMScheduler

__all__ = ["DDIMInverseScheduler", "DDIMScheduler"]
