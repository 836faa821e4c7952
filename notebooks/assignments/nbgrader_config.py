"""nbgrader's settings for the course; `classroom.py release` copies them beside what it makes."""

from uuid import uuid4

c = get_config()  # noqa: F821

c.CourseDirectory.course_id = "dss"
# The slowest cell takes 5 s on one core, some 15 s on a busy one.  A cell that takes longer is
# interrupted and loses what depends on it; the cells below it still run.
c.Execute.timeout = 60
c.Execute.interrupt_on_timeout = True
c.Execute.startup_timeout = 120
# A check that is not run raises no error, and would count as passed: nobody may tag it so.
c.Execute.skip_cells_with_tag = uuid4().hex
c.LimitOutput.max_lines = 500
c.LimitOutput.max_traceback = 40
# Late hand-ins: "zero" takes all points off, "none" takes none.  `grade` shows how late they are.
c.LateSubmissionPlugin.penalty_method = "none"
# Without this name `nbgrader export` would write over the table of `grade`.
c.CsvExportPlugin.to = "nbgrader_export.csv"
