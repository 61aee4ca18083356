//! Empties whole hosts so that they can be switched off: the balancer's machinery with another goal.
//!
//! Owns the choice of hosts. What makes a host hurt, what a move costs, who rests, how many may move and how moves become
//! waves is the balancer's. A host is emptied entirely or left alone; nobody is moved for a host that stays on.
//!
//! Refuses to make anybody hurt: a host takes on VMs only while it is expected to serve all of them with room to spare, and
//! only while the policy's `failover_hosts` could still fail.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use crate::admit::{Answer, admit};
use crate::balance::board::Board;
use crate::balance::search::{Choice, Search, in_waves};
use crate::balance::{Ask, BalancePlan, Left, Why, cpus, plural};
use crate::evacuate::is_open;
use crate::filter;
use crate::request::Request;
use crate::snapshot::{HostIdx, HostState, Snapshot, VmIdx};
use crate::waves::{Step, seat};

/// How far hosts are filled, and how many empty ones stay awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frugality {
    /// A host is filled until its demand, two standard deviations above the mean, reaches this share of its CPUs, percent.
    pub fill_percent: u64,
    /// Empty hosts kept awake, so that a sudden VM need not wait for one to boot.
    pub awake: usize,
}

impl Default for Frugality {
    /// As much as is commonly taken to be full but not yet crowded.
    fn default() -> Self {
        Self { fill_percent: 80, awake: 1 }
    }
}

/// What an idle host burns, as a share of its CPUs at work, percent: machines idle at about half of their full power.
const IDLE_PERCENT: u64 = 50;

/// Hosts whose filters are asked for one VM, the fullest first.
const ASKED_MAX: usize = 256;

/// Plans to empty hosts. The same snapshot and question give the same plan.
#[must_use]
pub fn consolidate(snapshot: &Snapshot, ask: &Ask<'_>, frugality: &Frugality) -> BalancePlan {
    let mut search = Search::new(snapshot, ask);
    let before = search.board.pain();
    let mut emptied: Vec<HostIdx> = idle(snapshot);
    let mut plan: Vec<(HostIdx, Vec<Choice>)> = Vec::new();
    let mut moves = 0;
    let mut why: Option<Left> = None;
    for victim in victims(&search.board) {
        let closed: BTreeSet<HostIdx> = emptied.iter().copied().collect();
        match empty(&mut search, victim, &closed, frugality) {
            Ok(choices) if moves + choices.len() <= search.moves_left() => {
                moves += choices.len();
                emptied.push(victim);
                plan.push((victim, choices));
            }
            Ok(choices) => {
                undo(&mut search, victim, &choices);
                let text = format!(
                    "only {} more may be moved within the hour",
                    plural(search.moves_left() - moves, "VM")
                );
                why = why.or(Some(Left { host: Some(snapshot.host(victim).uid), why: Why::Radius, text }));
                break;
            }
            Err(left) => why = why.or(Some(left)),
        }
    }
    while !survives(&search.board, &emptied) {
        let Some((host, choices)) = plan.pop() else { break };
        undo(&mut search, host, &choices);
        emptied.retain(|one| *one != host);
        let text =
            format!("{} more must be able to fail", plural(snapshot.policy.failover_hosts as usize, "host"));
        why = Some(Left { host: Some(snapshot.host(host).uid), why: Why::Needed, text });
    }
    let after = search.board.pain();
    let chosen: Vec<(Choice, String)> = plan
        .iter()
        .flat_map(|(host, choices)| {
            let name = &snapshot.host(*host).name;
            let reason = format!("{name} can be switched off once {} left it", plural(choices.len(), "VM"));
            choices.iter().map(move |choice| (*choice, reason.clone())).collect::<Vec<_>>()
        })
        .collect();
    let waves = in_waves(snapshot, &chosen, ask);
    // Those that are empty already are kept awake first.
    let emptied = emptied.iter().skip(frugality.awake).map(|host| snapshot.host(*host).uid).collect();
    let left = why.into_iter().collect();
    BalancePlan { revision: snapshot.revision, before, after, waves, left, emptied }
}

/// Hosts that are up and carry nothing.
fn idle(snapshot: &Snapshot) -> Vec<HostIdx> {
    let idle = |(host, row): (HostIdx, &crate::snapshot::HostRow)| {
        (row.state == HostState::Up && !row.cordoned && snapshot.room(host).vms.is_empty()).then_some(host)
    };
    snapshot.hosts().filter_map(idle).collect()
}

/// Hosts worth emptying: the one with the least demand per CPU first, of those the one with the fewest VMs.
fn victims(board: &Board) -> Vec<HostIdx> {
    let mut hosts: Vec<(u64, usize, HostIdx)> = board
        .open()
        .filter(|(host, _)| !board.fleet.room(*host).vms.is_empty() && is_open(&board.fleet, *host))
        .map(|(host, cell)| {
            let busy = crate::balance::pain::share_ppm(cell.demand.mean_milli, cell.capacity_milli);
            (busy, board.fleet.room(host).vms.len(), host)
        })
        .collect();
    hosts.sort_unstable();
    hosts.into_iter().map(|(_, _, host)| host).collect()
}

/// Moves everything off a host, or nothing.
fn empty(
    search: &mut Search,
    victim: HostIdx,
    closed: &BTreeSet<HostIdx>,
    frugality: &Frugality,
) -> Result<Vec<Choice>, Left> {
    let mut vms = search.board.fleet.room(victim).vms.clone();
    let demand = |search: &Search, vm: &VmIdx| search.board.demand(*vm).mean_milli;
    vms.sort_by_key(|vm| (Reverse(demand(search, vm)), *vm));
    let mut choices: Vec<Choice> = Vec::new();
    let mut cost_cpu_ms = 0;
    let name = search.board.fleet.host(victim).name.clone();
    for vm in vms {
        let found = match search.rests(vm, victim) {
            Some(why) => Err((why, "may not be moved now")),
            None => room_for(search, vm, victim, closed, frugality)
                .ok_or((Why::Needed, "fits on no other host without crowding it")),
        };
        match found {
            Ok(choice) => {
                cost_cpu_ms += choice.cost.cpu_ms;
                search.carry(&choice);
                choices.push(choice);
            }
            Err((why, what)) => {
                undo(search, victim, &choices);
                let text = format!("{name} has to stay on: {} {what}", search.board.fleet.vm(vm).name);
                return Err(Left { host: Some(search.board.fleet.host(victim).uid), why, text });
            }
        }
    }
    let saved = search.board.hosts[victim.at()].capacity_milli * IDLE_PERCENT / 100 * search.horizon_s();
    if !search.pays(saved, cost_cpu_ms) {
        undo(search, victim, &choices);
        let text = format!(
            "{name} stays on: emptying it costs {} CPU-s, and an idle host of {} CPUs is worth {}",
            cost_cpu_ms / 1_000,
            cpus(search.board.hosts[victim.at()].capacity_milli),
            saved / 1_000
        );
        return Err(Left { host: Some(search.board.fleet.host(victim).uid), why: Why::NotWorthIt, text });
    }
    Ok(choices)
}

/// The fullest host that takes the VM and stays comfortable.
fn room_for(
    search: &Search,
    vm: VmIdx,
    victim: HostIdx,
    closed: &BTreeSet<HostIdx>,
    frugality: &Frugality,
) -> Option<Choice> {
    let board = &search.board;
    let cost = search.cost(vm)?;
    let request = Request::to_move(&board.fleet, vm);
    let mut hosts: Vec<(i128, HostIdx)> = board
        .open()
        .filter(|(host, _)| *host != victim && !closed.contains(host) && is_open(&board.fleet, *host))
        .map(|(host, cell)| (cell.spare_milli, host))
        .collect();
    hosts.sort_unstable();
    let comfortable = |host: HostIdx| {
        let cell = &board.hosts[host.at()];
        let kept = i128::from(cell.capacity_milli) * i128::from(100 - frugality.fill_percent.min(100)) / 100;
        board.spare_with(vm, host) >= kept
    };
    let fits = |host: &HostIdx| {
        comfortable(*host)
            && !search.is_banned(vm, *host)
            && filter::refuse(&board.fleet, &request, *host).is_none()
    };
    let to = hosts
        .into_iter()
        .map(|(_, host)| host)
        .filter(|host| comfortable(*host))
        .take(ASKED_MAX)
        .find(fits)?;
    let seat = seat(&board.fleet, Step { vm, to })?;
    Some(Choice { vm, from: victim, seat, gain_milli: 0, gain_cpu_ms: 0, cost })
}

fn undo(search: &mut Search, victim: HostIdx, choices: &[Choice]) {
    for choice in choices.iter().rev() {
        // The seat it had may have been on particular NUMA nodes; it fits them again, since all that came has left.
        if let Some(seat) = seat(&search.board.fleet, Step { vm: choice.vm, to: victim }) {
            search.carry_back(choice.vm, seat);
        }
    }
}

/// May the policy's number of hosts still fail, with those switched off?
fn survives(board: &Board, emptied: &[HostIdx]) -> bool {
    let failures = board.fleet.policy.failover_hosts;
    if failures == 0 || emptied.is_empty() {
        return true;
    }
    let mut fleet = board.fleet.clone();
    for host in emptied {
        fleet.remove_host(*host);
    }
    admit(&fleet, failures).answer == Answer::Yes
}
