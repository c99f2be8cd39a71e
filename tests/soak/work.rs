//! Pieces of work, each with sandboxes of its own, and what must come of them.

use std::thread;
use std::time::Duration;

use cofferdam::{Command, CommitOptions, Error, ErrorKind, Exit, Instance, InstancePool, Interaction, Pool, Sandbox, Stdio, Verdict};

use crate::calamity::Calamity;
use crate::job::{End, Job, job, recipe};
use crate::place::Place;
use crate::support::random::Random;
use crate::support::shell;

type Result<T> = std::result::Result<T, Error>;

/// Something that a host does. What it's no reason for the workload is an error.
pub(crate) fn piece(random: &mut Random, place: &Place, calamity: Calamity) -> Result<()> {
    match random.below(20) {
        0 | 1 => live(random, place),
        2 => pool(random, place),
        3 => image(random, place),
        4 => failing_step(random, place),
        5 => terminal(random, place),
        6 => panicking(random, place),
        7 => calamity.provoke(),
        8 => talk(random, place),
        _ => {
            let job = job(random, place);
            command(random, job)
        }
    }
}

/// A run of everyday's, which nothing has disturbed.
pub(crate) fn right(place: &Place) {
    for sandbox in [Sandbox::new(), Sandbox::new().rootfs(&place.image)] {
        let out = sandbox.run(Command::new("cat").stdin("text")).expect("it runs");
        assert_eq!((out.status, &*out.text()), (Exit::Code(0), "text"));
    }
}

/// A command in a sandbox of its own, to its end or to another.
fn command(random: &mut Random, job: Job) -> Result<()> {
    let Job { sandbox, command, end } = job;
    let what = format!("{command:?} in {sandbox:?}");
    let begun = match random.below(8) {
        0 | 1 => {
            let mut child = sandbox.spawn(command);
            if let Ok(child) = &mut child {
                thread::sleep(Duration::from_micros(random.below(3000)));
                child.kill()?;
            }
            child.and_then(|child| child.wait_with_output()).map(|out| (out.status, None))
        }
        2 => match sandbox.spawn(command) {
            // Dropped.
            Ok(_child) => return Ok(()),
            Err(error) => Err(error),
        },
        3 => sandbox.spawn(command).and_then(|mut child| {
            let killer = child.killer();
            let after = Duration::from_micros(random.below(3000));
            thread::scope(|scope| {
                scope.spawn(move || {
                    thread::sleep(after);
                    let _ = killer.kill();
                });
                child.wait().map(|exit| (exit, None))
            })
        }),
        4 => sandbox.spawn(command).and_then(|mut child| {
            while child.wait_timeout(Duration::from_millis(3))?.is_none() {}
            child.wait_with_output().map(|out| (out.status, Some(out.text().into_owned())))
        }),
        5 => {
            let mut lines = 0;
            sandbox.run_lines(command, |_| lines += 1).map(|out| (out.status, Some(out.text().into_owned())))
        }
        _ => sandbox.run(command).map(|out| (out.status, Some(out.text().into_owned()))),
    };
    match (begun, end) {
        (Err(error), End::Error(kind)) if error.kind() == kind => Ok(()),
        (Err(error), _) => Err(error),
        (Ok((Exit::Killed, None)), _) => Ok(()),
        (Ok((exit, text)), end) => {
            let right = match &end {
                End::Exit(expected) => exit == *expected,
                End::Says(expected) => exit == Exit::Code(0) && text.as_ref().is_none_or(|text| text == expected),
                End::Error(_) => false,
            };
            let text = text.map(|text| text.chars().take(1000).collect::<String>());
            assert!(right, "{exit:?}, {text:?} instead of {end:?}: {what}");
            Ok(())
        }
    }
}

/// A sandbox for several commands, left in one way or another.
fn live(random: &mut Random, place: &Place) -> Result<()> {
    let mut instance = recipe(random, place).start()?;
    for _ in 0..random.below(4) {
        match random.below(5) {
            0 => {
                instance.write("/tmp/file", "written")?;
                assert_eq!(instance.read("/tmp/file", 100)?, b"written");
            }
            1 => drop(instance.spawn(Command::new("sleep").arg("1000"))?),
            2 => {
                let mut child = instance.spawn(Command::new("sleep").arg("1000"))?;
                instance.pause()?;
                instance.resume()?;
                instance.kill()?;
                assert!(matches!(child.wait()?, Exit::Killed | Exit::Signal(9)));
            }
            3 => instance.reset()?,
            _ => says_so(&instance)?,
        }
    }
    match random.below(4) {
        0 => {
            instance.write("/tmp/kept", "kept")?;
            let checkpoint = instance.into_checkpoint()?;
            let out = checkpoint.sandbox().run(["cat", "/tmp/kept"])?;
            assert_eq!(out.text(), "kept", "{out}");
        }
        1 => {
            // It's the host's end, or the thread's, that ends them.
            let _child = instance.spawn(shell("for i in 1 2 3; do sleep 1000 & done; wait"))?;
            drop(instance);
        }
        _ => says_so(&instance)?,
    }
    Ok(())
}

fn says_so(instance: &Instance) -> Result<()> {
    let out = instance.run(Command::new("cat").stdin("text"))?;
    assert_eq!((out.status, &*out.text()), (Exit::Code(0), "text"));
    Ok(())
}

fn pool(random: &mut Random, place: &Place) -> Result<()> {
    if random.one_in(3) {
        let pool = InstancePool::new(recipe(random, place), 2)?;
        for _ in 0..random.below(3) {
            says_so(&pool.take()?)?;
        }
        return Ok(());
    }
    let pool = Pool::new(recipe(random, place), 2)?;
    for _ in 0..random.below(5) {
        assert_eq!(pool.run(Command::new("cat").stdin("text"))?.text(), "text");
    }
    // While the next ones are prepared.
    Ok(())
}

/// Two programs that talk, to the end or until the host has heard enough.
fn talk(random: &mut Random, place: &Place) -> Result<()> {
    let mut talk = Interaction::new();
    let judge = talk.judge(recipe(random, place), shell("echo question; read answer; test \"$answer\" = answer"));
    let script = random.pick(&["read question; echo answer", "read question; kill -SEGV $$", "sleep 1000"]);
    let player = talk.player(recipe(random, place), shell(script));
    talk.connect(judge, player);
    let talk = talk.start()?;
    match script.split(' ').next_back() {
        Some("answer") => assert_eq!(talk.wait()?.verdict, Verdict::Accepted),
        // It waits for ever otherwise.
        Some("1000") => talk.kill()?,
        _ => drop(talk),
    }
    Ok(())
}

/// What a run has written becomes an image, for a moment.
fn image(random: &mut Random, place: &Place) -> Result<()> {
    let name = format!("image-{:x}", random.next());
    let sandbox = Sandbox::new().rootfs(&place.image).keep_changes(true);
    let out = sandbox.run(shell(&format!("head -c 100000 /dev/urandom > /{name}")))?.exit_ok()?;
    assert_eq!(out.changes()?.len(), 1);
    let image = out.commit(&CommitOptions::new().name(&name))?;
    let out = Sandbox::new().rootfs(&image).run(["ls", &format!("/{name}")])?;
    assert!(out.success(), "{out}");
    drop((image, out));
    place.store.remove(&name)
}

fn failing_step(random: &mut Random, place: &Place) -> Result<()> {
    let sandbox = recipe(random, place).with_failing_step(random.below(90) as usize);
    match sandbox.run("true") {
        // The kernel may lack it, and the outcome says so.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::Invalid || error.to_string().contains("Function not implemented") => Ok(()),
        Err(error) => Err(error),
    }
}

fn terminal(random: &mut Random, place: &Place) -> Result<()> {
    let child = recipe(random, place).spawn(shell("test -t 0 && exit 3").pty(24, 80))?;
    let out = child.wait_with_output()?;
    assert_eq!(out.status, Exit::Code(3));
    Ok(())
}

/// A thread of the host's panics while it has sandboxes.
fn panicking(random: &mut Random, place: &Place) -> Result<()> {
    let (first, second) = (recipe(random, place), recipe(random, place));
    let ended = thread::scope(|scope| {
        let thread = scope.spawn(move || -> Result<()> {
            let _live = first.start()?;
            let _pool = Pool::new(second.clone(), 1)?;
            let _child = second.spawn(Command::new("sleep").arg("1000").stdout(Stdio::piped()))?;
            // Without the noise of `panic!`.
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        thread.join()
    });
    match ended {
        Ok(result) => result,
        Err(_) => Ok(()),
    }
}
