"""What each reason means on each condition, and as an Event, and what to do. Pure.

`python -m finetune_operator.condition_pages` prints the tables as docs/reference/conditions.md.
"""

from dataclasses import replace

from finetune_api.v1alpha1 import ConditionType
from finetune_operator.policy.reasons import (
    KEPT_OUT,
    OBSTACLES,
    QUEUED,
    ConditionMeaning,
    ForeignReason,
    Meaning,
    Reason,
)

CONDITIONS = (
    ConditionMeaning(
        ConditionType.ACCEPTED,
        "Is the spec valid? Once True, no spec fails the job.",
        (
            Meaning("True", Reason.SPEC_VALID, "The spec is valid."),
            Meaning(
                "False",
                ForeignReason.CODE,
                "The first spec breaks a rule, and the job has failed.",
                "Correct the field that the message names, and create the job again.",
            ),
        ),
    ),
    ConditionMeaning(
        ConditionType.PREPARED,
        "Are data, model and plan ready?",
        (
            Meaning("True", Reason.PREPARED, "The plan is ready. The message is its summary."),
            Meaning("False", Reason.PREPARING, "A CPU pod checks the data and the model."),
            *OBSTACLES,
        ),
    ),
    ConditionMeaning(
        ConditionType.ADMITTED,
        "May the training pods be created?",
        (
            Meaning("True", Reason.ADMITTED, "The pods may be created."),
            Meaning("False", Reason.DRY_RUN, "`spec.dryRun` is true.", "Set `spec.dryRun` to false to train."),
            Meaning("False", Reason.SUSPENDED, "`spec.suspend` is true.", "Set `spec.suspend` to false to resume."),
            Meaning(
                "False",
                Reason.NOT_SUPPORTED_YET,
                "`spec.nodes` is not the number of nodes that the run was planned for.",
                "Set `spec.suspend` to true, and `spec.nodes` to the number in the message.",
            ),
            QUEUED,
            *KEPT_OUT,
        ),
    ),
    ConditionMeaning(
        ConditionType.RUNNING,
        "Do all nodes train?",
        (
            Meaning("True", Reason.ALL_NODES_READY, "All nodes train."),
            Meaning("False", Reason.WAITING_FOR_NODES, "The pods start. The message counts the nodes that are ready."),
            Meaning(
                "False",
                Reason.RECOVERING,
                "A worker or a node was lost, and the run recovers. The message has the cause.",
            ),
            Meaning("False", Reason.ENDING, "The pods of the previous attempt save, upload and end."),
            Meaning("False", Reason.SUSPENDING, "`spec.suspend` is true; the pods save, upload and end."),
            Meaning(
                "False",
                Reason.SUSPENDED,
                "`spec.suspend` is true, and no pod runs.",
                "Set `spec.suspend` to false to resume.",
            ),
            Meaning("False", Reason.DRY_RUN, "`spec.dryRun` is true.", "Set `spec.dryRun` to false to train."),
            Meaning(
                "False",
                Reason.NOT_SUPPORTED_YET,
                "`spec.nodes` is not the number of nodes that the run was planned for.",
                "Set `spec.suspend` to true, and `spec.nodes` to the number in the message.",
            ),
            Meaning("False", Reason.TRAINED, "Training is complete, and its checkpoints are committed."),
            Meaning("False", Reason.FAILED, "The job has failed.", "Read `status.failure`."),
            *OBSTACLES,
        ),
    ),
    ConditionMeaning(
        ConditionType.CHECKPOINTED,
        "Does storage hold the newest checkpoints?",
        (
            Meaning("True", Reason.COMMITTED, "A checkpoint is committed. The message names the newest."),
            Meaning(
                "False",
                Reason.STORAGE_REFUSES,
                "Storage has refused uploads or commits for a while. Training continues, and the nodes keep their"
                " newest two checkpoints.",
                "Check the storage. The message has its last error, and the time of the last commit.",
            ),
        ),
    ),
    ConditionMeaning(
        ConditionType.EXPORTED,
        "Are the artifacts ready?",
        (
            Meaning("True", Reason.EXPORTED, "The artifacts are ready. The message lists them."),
            Meaning("False", Reason.EXPORTING, "A CPU pod makes artifacts from the best checkpoint."),
            Meaning(
                "False",
                Reason.ENDING,
                "`spec.export`, or a suite with an image, has changed; the previous export ends first.",
            ),
            *OBSTACLES,
        ),
    ),
    ConditionMeaning(
        ConditionType.APPROVED,
        "Does the exported model pass the gates of `spec.export.gates`? The job succeeds either way.",
        (
            Meaning("True", Reason.GATES_PASSED, "All gates are passed. The message has the values."),
            Meaning(
                "False",
                Reason.GATES_FAILED,
                "At least one gate failed. The message names each with its value and interval.",
                "Read `judgement.json` of the run, and do not deploy the model before you know the cause.",
            ),
            Meaning(
                "False",
                Reason.NOT_JUDGED,
                "The model could not be judged. The message has the cause. The artifacts are complete.",
                "Correct the cause, such as too little memory in `export.resources`, and raise `export.attempt`.",
            ),
            Meaning("False", Reason.NO_GATES, "The last export had no gates; an earlier one had."),
            Meaning("False", Reason.EXPORTING, "The job exports again; an earlier export was judged."),
            Meaning(
                "False",
                Reason.FAILED,
                "The last export failed; an earlier one was judged.",
                "Read `status.failure`, correct the cause, and raise `export.attempt`.",
            ),
        ),
    ),
    ConditionMeaning(
        ConditionType.SERVED,
        "Does a server answer with the artifacts as transformers does (`spec.export.serveTest`)? The job succeeds"
        " either way.",
        (
            Meaning("True", Reason.SAME_ANSWERS, "The answers agree as far as the job asks."),
            Meaning(
                "False",
                Reason.OTHER_ANSWERS,
                "The server writes other tokens than transformers.",
                "Compare the answers in the message. Do not deploy the artifact before you know the cause.",
            ),
            Meaning(
                "False",
                Reason.ENDS_MISSED,
                "The server goes on after a token that ends an answer.",
                "Look at `eos_token_id` in `generation_config.json` of the artifact, and at the flags of the server.",
            ),
            Meaning(
                "False",
                Reason.SERVER_FAILED,
                "The server did not start with the artifact, ended, or gave no answer. The message has its last line.",
                "Correct the cause, such as too little memory in `export.resources`, and raise `export.attempt`.",
            ),
            Meaning(
                "False",
                Reason.NOT_SERVABLE,
                "The server takes no artifact of this kind. The message has the rule.",
                "Export another form, such as `merged`.",
            ),
            Meaning(
                "Unknown",
                Reason.NOT_TESTED,
                "No artifact could be tested. The message has the cause.",
                "Follow the message, and raise `export.attempt`.",
            ),
            Meaning(
                "Unknown",
                Reason.SERVER_NOT_STARTED,
                "The container of `serveTest.image` cannot start. The export goes on without it, and ends with"
                " `NotTested`.",
                "Correct the image; the export then starts again with it.",
            ),
            Meaning("Unknown", Reason.NO_SERVE_TEST, "The last export has no test; an earlier one had."),
            Meaning("Unknown", Reason.EXPORTING, "The job exports again; an earlier export was tested."),
            Meaning(
                "Unknown",
                Reason.FAILED,
                "The last export failed; an earlier one was tested.",
                "Read `status.failure`, correct the cause, and raise `export.attempt`.",
            ),
        ),
    ),
    ConditionMeaning(
        ConditionType.COMPLETE,
        "Did the job succeed?",
        (
            Meaning("True", Reason.SUCCEEDED, "All stages are complete. The message lists the artifacts."),
            Meaning("False", ForeignReason.PHASE, "The job exports again, because `spec.export.attempt` was raised."),
        ),
    ),
    ConditionMeaning(
        ConditionType.FAILED,
        "Did the job fail?",
        (
            Meaning(
                "True",
                ForeignReason.CATEGORY,
                "The job has failed. The category is UserError, DataError, OutOfMemory, Preempted, NodeFault, Hang,"
                " Diverged or Unknown.",
                "Read `status.failure`: it has the code, the sentence, what to do, and the last lines.",
            ),
            Meaning("False", ForeignReason.PHASE, "The job exports again, because `spec.export.attempt` was raised."),
        ),
    ),
    ConditionMeaning(
        ConditionType.OVERFITTING,
        "Does the run overfit? A warning.",
        (
            Meaning(
                "True",
                Reason.EVAL_LOSS_RISES,
                "The evaluation loss rises while the training loss falls. The best checkpoint is kept.",
                "Train for fewer epochs, add rows, or set `training.early_stopping_patience`.",
            ),
            Meaning("False", Reason.AS_EXPECTED, "The evaluation loss falls again."),
        ),
    ),
    ConditionMeaning(ConditionType.PROGRESS_STALLED, "Does the run make no steps? This version does not set it."),
    ConditionMeaning(
        ConditionType.DEGRADED,
        "Does the job continue with a restriction? A warning.",
        (
            Meaning(
                "True",
                Reason.SPEC_REFUSED,
                "The current spec breaks a rule. The job continues with the last accepted spec.",
                "Correct the field that the message names.",
            ),
            Meaning(
                "True",
                Reason.NOTHING_TO_EXPORT,
                "`spec.export.attempt` was raised, but training did not succeed.",
                "Create a new FineTuneJob.",
            ),
            Meaning(
                "True",
                Reason.LEADER_UNREACHABLE,
                "The operator gets no progress from the leader. Training is not affected.",
                "Let the operator reach port 29400 of the pods, and use an image of the operator's version. The"
                " operator's log has the cause.",
            ),
            Meaning("False", Reason.AS_EXPECTED, "The restriction is over."),
        ),
    ),
    ConditionMeaning(
        ConditionType.RECONCILING,
        "Does the job still move to a settled phase? Helm and GitOps tools wait for False.",
        (
            Meaning(
                "True", ForeignReason.PHASE, "The job is Preparing, Queued, Starting or Recovering, or its pods end."
            ),
            Meaning(
                "False", ForeignReason.PHASE, "The job is Planned, Running, Suspended, Exporting, Succeeded or Failed."
            ),
        ),
    ),
    ConditionMeaning(
        ConditionType.STALLED,
        "Did the job fail for good? Helm and GitOps tools read this condition.",
        (
            Meaning("True", ForeignReason.CODE, "The job has failed.", "Read `status.failure`."),
            Meaning("False", ForeignReason.PHASE, "The job has not failed."),
        ),
    ),
)
"""All condition types, in the order of the status."""

EVENTS = (
    Meaning("Normal", Reason.PREPARING, "The prepare stage starts."),
    Meaning("Normal", Reason.PREPARED, "Data, model and plan are ready."),
    Meaning("Normal", Reason.DRY_RUN, "The plan is ready, and `spec.dryRun` is true."),
    Meaning("Normal", Reason.QUEUED, "A queue suspends the Job of a stage."),
    Meaning("Normal", Reason.WAITING_FOR_NODES, "The training pods start."),
    Meaning("Normal", Reason.ALL_NODES_READY, "All nodes train."),
    Meaning(
        "Normal", Reason.COMMITTED, "The first checkpoint is committed, or the first one after an outage of storage."
    ),
    Meaning("Normal", Reason.SUSPENDING, "The pods save and end, because `spec.suspend` is true."),
    Meaning("Normal", Reason.SUSPENDED, "No pod runs, because `spec.suspend` is true."),
    Meaning("Normal", Reason.ENDING, "The pods of the previous attempt or export end."),
    Meaning("Normal", Reason.TRAINED, "Training is complete, and the job was suspended before its export."),
    Meaning("Normal", Reason.EXPORTING, "The export stage starts."),
    Meaning("Normal", Reason.SUCCEEDED, "The job has succeeded."),
    Meaning("Warning", Reason.DATASET_WARNING, "A warning of the data report, once each.", "Read the report."),
    Meaning("Warning", Reason.EVALUATION_WARNING, "A warning of an artifact's evaluation, once each."),
    Meaning("Normal", Reason.PUSHED, "A place of `spec.export.push` has a new copy of an artifact, once each."),
    Meaning("Warning", Reason.RECOVERING, "Nodes are missing, and the run recovers.", "See condition Running."),
    Meaning(
        "Warning", ForeignReason.CATEGORY, "A recovery began: its generation and its cause.", "See `status.recoveries`."
    ),
    Meaning("Warning", Reason.STORAGE_REFUSES, "Storage has refused checkpoints for a while.", "See Checkpointed."),
    Meaning("Warning", Reason.EVAL_LOSS_RISES, "The run overfits.", "See condition Overfitting."),
    Meaning("Warning", Reason.GATES_FAILED, "The exported model fails a gate.", "See condition Approved."),
    Meaning("Warning", Reason.NOT_JUDGED, "The exported model could not be judged.", "See condition Approved."),
    Meaning("Normal", Reason.SAME_ANSWERS, "A server answers with the artifacts as transformers does."),
    Meaning("Warning", Reason.OTHER_ANSWERS, "A server writes other tokens.", "See condition Served."),
    Meaning("Warning", Reason.ENDS_MISSED, "A server goes on after the end of an answer.", "See condition Served."),
    Meaning("Warning", Reason.SERVER_FAILED, "A server failed with an artifact.", "See condition Served."),
    Meaning("Warning", Reason.NOT_SERVABLE, "A server takes no artifact of this kind.", "See condition Served."),
    Meaning("Warning", Reason.NOT_TESTED, "No artifact could be tested on a server.", "See condition Served."),
    Meaning(
        "Warning",
        Reason.SERVER_NOT_STARTED,
        "The export goes on without the container that serves.",
        "See condition Served.",
    ),
    Meaning("Warning", Reason.SPEC_REFUSED, "A changed spec breaks a rule.", "See condition Degraded."),
    Meaning("Warning", Reason.NOTHING_TO_EXPORT, "An export was requested after a failure.", "See condition Degraded."),
    Meaning(
        "Warning", Reason.NOT_SUPPORTED_YET, "The job cannot resume with its `spec.nodes`.", "See condition Running."
    ),
    *(replace(obstacle, status="Warning") for obstacle in OBSTACLES if obstacle is not QUEUED),
)
"""All Events on a FineTuneJob; `status` is their type."""
