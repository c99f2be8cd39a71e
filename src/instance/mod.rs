//! A live sandbox: several commands in the same files, namespaces and limits.

mod archive;
pub(crate) mod connect;
mod copy;
mod files;
mod inside;
mod walk;

pub use files::{Entry, EntryKind};

use std::sync::Arc;

use crate::changes::{CommitOptions, Upper};
use crate::checkpoint::Checkpoint;
use crate::child::Child;
use crate::command::Command;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layer::Change;
use crate::outcome::{Line, Output, Usage};
use crate::plan::message::Request;
use crate::plan::wire::NOTIFY_START;
use crate::sandbox::Sandbox;
use crate::supervise::session::Session;
use crate::supervise::{Live, Pipes, monotonic, refuse_piped};

/// A live sandbox, started by [`Sandbox::start`]: commands run in it one after another,
/// or at once, and see the same files, processes and loopback network. They share the
/// recipe's memory, process and CPU bandwidth limits; each has its own
/// [`Output`], its own usage, and the recipe's time and output limits
/// for itself, which the command may [replace](Command::wall_time).
///
/// A command costs little more than fork and exec. When its main process has ended,
/// everything that it left behind is killed, as in a sandbox of its own: a server is a
/// command that [`spawn`](Self::spawn) keeps.
///
/// Commands of one instance are not protected from each other: they have the same user
/// and the same files. (Where Landlock knows scopes, from Linux 6.12, each command is one of
/// its own: none can signal or trace another, or reach its abstract sockets.) What mustn't
/// meet gets an instance of its own.
///
/// Dropping it kills everything in it. It may be used from several threads at once;
/// 64 commands can run at a time.
///
/// ```
/// use cofferdam::Sandbox;
///
/// let instance = Sandbox::new().start()?;
/// instance.run(["sh", "-c", "echo 'echo $((6 * $1))' > /tmp/multiply"])?.exit_ok()?;
/// for n in 1..4 {
///     let out = instance.run(["sh", "/tmp/multiply", &n.to_string()])?;
///     assert_eq!(out.text(), format!("{}\n", 6 * n));
/// }
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Debug)]
pub struct Instance {
    session: Arc<Session>,
}

impl Instance {
    pub(crate) fn start(sandbox: &Sandbox) -> Result<Instance> {
        Ok(Instance { session: Arc::new(Session::start(sandbox, None)?) })
    }

    /// Runs a command and waits for its end, as [`Sandbox::run`] does.
    pub fn run(&self, command: impl Into<Command>) -> Result<Output> {
        let command = command.into();
        refuse_piped(&command)?;
        let (mut live, _) = self.session.command(command, 0)?;
        live.looked_at()?;
        live.wait(None)?;
        live.finish()
    }

    /// Runs a command and tells its lines, as [`Sandbox::run_lines`] does.
    pub fn run_lines(&self, command: impl Into<Command>, mut on_line: impl FnMut(Line<'_>)) -> Result<Output> {
        let command = command.into();
        refuse_piped(&command)?;
        let (mut live, _) = self.begin(command)?;
        live.started()?;
        live.wait_lines(&mut on_line)?;
        live.finish()
    }

    /// Starts a command, as [`Sandbox::spawn`] does. The [`Child`] may outlive the
    /// instance; it then says that it has been killed.
    pub fn spawn(&self, command: impl Into<Command>) -> Result<Child> {
        let (mut live, pipes) = self.begin(command.into())?;
        let started = live.started()?;
        Ok(Child::new(live, pipes, started))
    }

    /// Whether nothing is known of its end.
    pub(crate) fn stands(&self) -> bool {
        self.session.stands()
    }

    /// Has everything killed, and doesn't wait.
    pub(crate) fn let_go(&self) {
        self.session.let_go();
    }

    /// What it is as long as it isn't reset.
    pub(crate) fn shared(&self) -> Arc<Session> {
        self.session.clone()
    }

    /// Asks for a command of whose exec there'll be a notice, and doesn't wait for it.
    pub(crate) fn begin(&self, command: Command) -> Result<(Live, Pipes)> {
        self.session.command(command, NOTIFY_START)
    }

    /// Sends a signal to the main process of each running command.
    pub fn signal(&self, signal: i32) -> Result<()> {
        crate::child::check_signal(signal)?;
        self.session.tell(Request::SIGNAL, signal as u64, 0)
    }

    /// Kills every running command with all that it has started; their verdict is
    /// [`Exit::Killed`](crate::Exit::Killed). Others may be started afterwards.
    pub fn kill(&self) -> Result<()> {
        self.session.tell(Request::KILL, 0, 0)
    }

    /// Stops everything in the sandbox until [`resume`](Self::resume). Wall clocks go on,
    /// idle time doesn't count. A command can't be started meanwhile.
    ///
    /// Where there's a cgroup v2 tree its freezer does it, of which a process notices
    /// nothing. Elsewhere it's SIGSTOP for all of them, which parents inside can see,
    /// and which ends stops of their own.
    pub fn pause(&self) -> Result<()> {
        self.set_paused(true)
    }

    /// Lets everything go on. Harmless if nothing is paused.
    pub fn resume(&self) -> Result<()> {
        self.set_paused(false)
    }

    fn set_paused(&self, pause: bool) -> Result<()> {
        let mut paused = self.session.paused.lock().unwrap_or_else(|e| e.into_inner());
        if *paused == pause {
            return Ok(());
        }
        let frozen = self.session.group().freeze(pause).map_err(|e| Error::io("freeze", "the control group", e))?;
        self.session.tell(Request::PAUSE, u64::from(pause), u64::from(!frozen))?;
        *paused = pause;
        Ok(())
    }

    /// Makes it as it was at the latest [`checkpoint`](Self::checkpoint) or, if there's
    /// none, when it was started, at the cost of a fresh sandbox, which it is: kills everything,
    /// and drops all that was written since, also from outside, with `/dev/shm`, shared memory,
    /// queues, sockets, counters, process ids and whatever else its namespaces had. A pause
    /// ends, and [`usage`](Self::usage) counts from zero.
    ///
    /// What stays is the recipe, with limits as they were [updated](Self::update), and what isn't the
    /// sandbox's own: files in [writable binds](Sandbox::bind_rw) and
    /// [volumes](Sandbox::volume), whose locks nobody else gets meanwhile, and, with [`Network::Host`](crate::Network::Host), what the
    /// host's network knows of its connections. [`Child`]ren say that they have been killed.
    ///
    /// # Errors
    /// If it can't be started again it has ended, as every further call says.
    pub fn reset(&mut self) -> Result<()> {
        *self = self.renewed()?;
        Ok(())
    }

    /// One in its place; it has ended.
    pub(crate) fn renewed(&self) -> Result<Instance> {
        let (recipe, volumes) = (self.session.sandbox(), self.session.volumes());
        let gone = self.session.end();
        Ok(Instance { session: Arc::new(Session::start(&recipe, volumes.filter(|_| gone))?) })
    }

    /// Makes a [`Checkpoint`] of the root file system as it is, at the cost of a fresh
    /// sandbox, whatever has been written: nothing is copied. The instance goes on as if it
    /// had been [forked](Checkpoint::fork) from it: with the same files and limits, of which
    /// the scratch layer is empty again, but in fresh namespaces, without `/dev/shm` and
    /// what its [tmpfs mounts](Sandbox::tmpfs) held.
    ///
    /// # Errors
    /// While a command runs, [`ErrorKind::Invalid`](crate::ErrorKind::Invalid), and nothing
    /// has happened: wait for its end, which [`kill`](Self::kill) brings about. With a recipe
    /// that [requires](Sandbox::require) [`Layer::IdMappedMounts`](crate::Layer::IdMappedMounts), as root below Linux
    /// 6.3, [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported); an ordinary user
    /// needs Linux 6.6. 24 checkpoints can lie on each other. If the instance can't go on it
    /// has ended, as every further call says, and there's no checkpoint either: where that
    /// matters take [`into_checkpoint`](Self::into_checkpoint).
    pub fn checkpoint(&mut self) -> Result<Checkpoint> {
        let (checkpoint, instance) = self.frozen()?;
        *self = instance;
        Ok(checkpoint)
    }

    /// With one in its place; it has ended.
    pub(crate) fn frozen(&self) -> Result<(Checkpoint, Instance)> {
        let volumes = self.session.volumes();
        let checkpoint = self.freeze()?;
        let session = Arc::new(Session::start(&checkpoint.sandbox(), volumes)?);
        Ok((checkpoint, Instance { session }))
    }

    /// Like [`checkpoint`](Self::checkpoint), and ends the instance, which saves the fresh
    /// sandbox.
    ///
    /// # Errors
    /// As above, but the instance has ended then.
    pub fn into_checkpoint(self) -> Result<Checkpoint> {
        self.freeze()
    }

    pub(crate) fn freeze(&self) -> Result<Checkpoint> {
        let recipe = self.session.sandbox();
        Checkpoint::check_depth(&recipe)?;
        Ok(Checkpoint::new(self.session.freeze()?, recipe))
    }

    /// What was added, modified and deleted in the root file system since the start, the
    /// latest [`checkpoint`](Self::checkpoint) or the latest [`reset`](Self::reset): what a
    /// `reset` would drop of it. Sorted by path; what the recipe mounts isn't part of it.
    ///
    /// It may be called while commands run; what they write meanwhile may be in it or
    /// not.
    pub fn changes(&self) -> Result<Vec<Change>> {
        self.session.with_layer(Upper::changes)
    }

    /// A new image: the instance's, with what was written as one more layer, and one for
    /// each checkpoint before, as [`Output::commit`] does it. Nothing is running, best, or
    /// a file may be in it half written.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) if the root file system isn't an
    /// image of a [`Store`](crate::Store).
    pub fn commit(&self, options: &CommitOptions) -> Result<Image> {
        self.session.with_layer(|layer| layer.commit(options))
    }

    /// What all commands together have used so far, where a control group counts it.
    pub fn usage(&self) -> Usage {
        let wall = monotonic().saturating_sub(self.session.began);
        Usage::of_group(&self.session.group().counters(), wall)
    }

    /// Takes over the limits of this recipe: memory, processes, CPU bandwidth and
    /// pinning at once, for all that runs; time and output limits for commands that start
    /// from now on. What else the recipe says has no effect, and a limit of the group
    /// that it doesn't have stays as it is.
    ///
    /// Where a limit can't be had, or the instance was started without any control group
    /// for it, it's an error and nothing has changed, or as much as was possible before.
    pub fn update(&self, recipe: &Sandbox) -> Result<()> {
        recipe.validate()?;
        let mut sandbox = self.session.sandbox();
        self.session.group().update(recipe.group_limits())?;
        sandbox.take_limits(recipe);
        self.session.set_sandbox(sandbox);
        Ok(())
    }
}

/// What the asynchronous one is made of.
#[cfg(feature = "tokio")]
impl Instance {
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Kills everything, and waits for that.
    pub(crate) fn end(&self) {
        self.session.end();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.session.end();
    }
}
