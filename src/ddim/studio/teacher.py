"""Which model finds the noise of real pictures: a student of few steps cannot, and its teacher can."""

from __future__ import annotations

from ddim.studio.desk import Studio

__all__ = ["teacher_of"]


def teacher_of(studio: Studio, name: str) -> tuple[str, str | None]:
    """(the model to use for real pictures where another is chosen, a sentence that says why, if it is another or if
    little is to be expected of it)."""
    known, scheduler = studio.known(name), studio.scheduler(name)
    teacher = None if known is None else known.teacher
    if teacher is None and (scheduler is None or scheduler.config.get("trained_timesteps") is None):
        return name, None
    if teacher is not None and teacher in studio.names:
        return teacher, (
            f"{teacher} finds the noise, from which {name} was distilled: a model that was made for few steps does not "
            "find the way back."
        )
    wanted = f": open the studio with its teacher {teacher} too" if teacher else ""
    return name, f"{name} was made for few steps, so that pictures come back badly{wanted}."
