//! The beginning of an interaction: pipes, and everybody on their way at once.

use std::sync::Arc;
use std::time::Instant;

use super::edge::Edge;
use super::round::{Round, Seat};
use super::{End, Home, Interaction, MOST};
use crate::command::{Command, FdKind, Stream};
use crate::error::{Error, Result};
use crate::plan::wire::NOTIFY_START;
use crate::supervise::{self, refuse_piped};

/// Who talks, where, and what with.
type Invited = (super::Party, Home, Command);

/// Returns when all have been executed.
pub(super) fn start(mut spec: Interaction) -> Result<Round> {
    let began = Instant::now();
    check(&spec)?;
    let mut parties = std::mem::take(&mut spec.parties);
    let woken: Vec<bool> = parties.iter().enumerate().map(|(i, (_, _, command))| hears_others(command, i, &spec)).collect();
    let edges = connect(&spec.pipes, &mut parties)?;
    // All are set up at once.
    let mut asked = Vec::new();
    for (party, home, command) in parties {
        let recipe = home.recipe();
        let recipe = command.limits.over(&recipe).unwrap_or(recipe);
        if recipe.idle_time.is_some() {
            // Whoever waits for another that's busy isn't idle.
            return Err(Error::invalid(format!("{party} can't have an idle time of its own; the interaction has one for all")));
        }
        refuse_piped(&command)?;
        let live = match home {
            Home::Fresh(_) => supervise::start(&recipe, command, NOTIFY_START),
            Home::Live(session) => session.command(command, NOTIFY_START),
        };
        asked.push((party, recipe.output, live.map_err(|e| e.within(&party.to_string()))?.0));
    }
    let mut seats = Vec::new();
    for ((party, most, mut live), woken) in asked.into_iter().zip(woken) {
        let process = live.started().map_err(|e| e.within(&party.to_string()))?.pidfd;
        seats.push(Seat::new(party, live, process, most, woken));
    }
    Ok(Round::new(spec, seats, edges, began))
}

fn check(spec: &Interaction) -> Result<()> {
    if let Some(problem) = &spec.problem {
        return Err(Error::invalid(problem.clone()));
    }
    let count = spec.parties.len();
    if !(2..=MOST).contains(&count) {
        return Err(Error::invalid(format!("{count} parties: an interaction has 2 to {MOST}")));
    }
    let live: Vec<_> = spec.parties.iter().filter_map(|(_, home, _)| home.live()).collect();
    if live.iter().enumerate().any(|(i, one)| live[..i].iter().any(|other| Arc::ptr_eq(one, other))) {
        return Err(Error::invalid("two parties can't share a live sandbox, where one could hurt the other; give each its own"));
    }
    Ok(())
}

/// Makes the pipes, and gives the commands their ends.
fn connect(pipes: &[(End, End)], parties: &mut [Invited]) -> Result<Vec<Edge>> {
    let mut edges = Vec::new();
    for (from, to) in pipes {
        let (edge, writer, reader) = Edge::new(*from, *to).map_err(|e| Error::io("make", "a pipe", e))?;
        for ((party, number), fd) in [(*from, writer), (*to, reader)] {
            let command = &mut parties[party].2;
            match number {
                0 => command.stdin = fd.into(),
                1 => command.stdout = fd.into(),
                2 => command.stderr = fd.into(),
                _ => command.fds.push((number, fd, FdKind::Plain)),
            }
        }
        edges.push(edge);
    }
    Ok(edges)
}

/// Whether a party has a descriptor through which somebody else could wake it.
fn hears_others(command: &Command, party: usize, spec: &Interaction) -> bool {
    let replaced = spec.pipes.iter().any(|(from, to)| *from == (party, 0) || *to == (party, 0));
    !command.fds.is_empty() || !replaced && matches!(command.stdin.0, Stream::Fd(_) | Stream::Inherit)
}
