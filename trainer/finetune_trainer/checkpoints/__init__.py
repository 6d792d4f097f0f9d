"""Checkpoints: identity, files on a node, files in storage, and the choice among them.

A checkpoint consists of parts, one for each node rank. A part holds the shards of the node's ranks, as DeepSpeed calls
them; part 0 holds the weights too. The same checkpoint has these forms, one for each place where it is stored or sent:

| type | form | written by | says |
| --- | --- | --- | --- |
| `beats.CheckpointId` | names of folders and objects | everybody | which checkpoint: step and generation |
| `beats.PartId` | in every beat | the agent | which part: step, generation and node rank |
| `marker.Marker` | `rank-<n>.saved` on a node's disk | the worker, last | this rank has saved; samples and metrics |
| `messages.CheckpointPart` | `PART.json` in storage | the agent, last | this node's files, with sizes and hashes |
| `messages.Manifest` | `MANIFEST.json` in storage | the leader | the commit: the files of all parts |
| `messages.CheckpointInfo` | `info` of that manifest | the leader | step, generation, world, samples, metrics |
| `beats.CheckpointFacts` | in /progress, DONE.json and status | the leader | size, time and metrics, for people |

`local` reads and cleans a node's disk, `store` uploads, commits and fetches, `committed` lists what storage holds, and
`pick` chooses: the best, those to keep, those to delete.
"""
