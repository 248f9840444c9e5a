//! Which index is believed: leases, the loss of an index, the next epoch.

use super::{
    Action, Check, Loss, State, Tags,
    state::{Beginning, Epoch, Identity, Place, Put, Read, Reconciliation, Recovery, Replica, Server, Step, Trim},
};

impl Tags {
    fn is_same(&self, one: Identity, other: Identity) -> bool {
        one.run == other.run && (!self.checks(Check::ReplicationId) || one.replication == other.replication)
    }

    /// Whether the index that a replica reaches is the one that an epoch names, and serves it.
    fn serves(&self, state: &State, replica: usize, (epoch, identity): (Epoch, Identity)) -> bool {
        let server = &state.servers[state.replicas[replica].server];
        self.is_same(identity, server.identity) && server.fence == Some(epoch)
    }

    pub(super) fn replica_actions(&self, state: &State, replica: usize, actions: &mut Vec<Action>) {
        let Replica { server, asked, lease } = state.replicas[replica];
        if let Some((epoch, identity)) = state.newest()
            && lease != Some(epoch)
            && asked != Some((epoch, identity))
            && self.is_same(identity, state.servers[server].identity)
        {
            actions.push(Action::AskForLease(replica));
        }
        if asked.is_some_and(|asked| self.serves(state, replica, asked)) {
            actions.push(Action::Lease(replica));
        }
        if lease.is_some() && !state.lost.is_empty() {
            actions.push(Action::LeaseRunsOut(replica));
        }
        let others = (0..state.servers.len()).filter(|&other| other != server);
        actions.extend(others.map(|other| Action::Reconnect(replica, other)));
    }

    pub(super) fn next_replica(&self, state: &mut State, action: &Action) {
        match *action {
            Action::AskForLease(replica) => state.replicas[replica].asked = state.newest(),
            Action::Lease(replica) => {
                let Some(asked) = state.replicas[replica].asked.take() else { return };
                if self.serves(state, replica, asked) {
                    state.replicas[replica].lease = Some(asked.0);
                }
            }
            Action::LeaseRunsOut(replica) => self.end_lease(&mut state.replicas[replica]),
            Action::Reconnect(replica, server) => {
                let replica = &mut state.replicas[replica];
                replica.server = server;
                if self.checks(Check::LeaseOfConnection) {
                    (replica.asked, replica.lease) = (None, None);
                }
            }
            _ => {}
        }
    }

    fn end_lease(&self, replica: &mut Replica) {
        if self.checks(Check::LeaseChecked) {
            replica.lease = None;
        }
    }

    pub(super) fn beginning_actions(&self, state: &State, beginner: usize, actions: &mut Vec<Action>) {
        match state.beginnings[beginner] {
            Beginning::Idle if !state.lost.is_empty() => {
                let is_served =
                    |replica: usize| state.newest().is_some_and(|newest| self.serves(state, replica, newest));
                let replicas = (0..state.replicas.len()).filter(|&replica| !is_served(replica));
                actions.extend(replicas.map(|replica| Action::ListEpochs(beginner, replica)));
            }
            Beginning::Listed(..) => actions.push(Action::WriteEpoch(beginner)),
            Beginning::Written(_) => actions.push(Action::Wait(beginner)),
            Beginning::Waited(_) => actions.push(Action::SetFence(beginner)),
            Beginning::Idle | Beginning::Over => {}
        }
    }

    /// What can't happen any more once all leases under older epochs, and all deadlines fixed under them, have passed.
    fn pass_time(&self, state: &mut State, before: Epoch) {
        if self.checks(Check::WaitForLeases) {
            for replica in &mut state.replicas {
                if replica.lease.is_some_and(|epoch| epoch < before) {
                    self.end_lease(replica);
                }
                let is_old = replica.asked.is_some_and(|(epoch, _)| epoch < before);
                if is_old && self.checks(Check::LeaseFromQuestion) {
                    replica.asked = None;
                }
            }
        }
        if self.checks(Check::WaitForDeadlines) {
            for write in &mut state.writes {
                match write.step {
                    Step::Reserving(place, _) | Step::Reserved(place, _) | Step::NothingToDo(place)
                        if place.epoch < before =>
                    {
                        write.overdue = true;
                    }
                    _ => {}
                }
            }
        }
    }

    pub(super) fn next_beginning(&self, state: &mut State, action: &Action) {
        match *action {
            Action::ListEpochs(beginner, replica) => {
                let generation = state.newest().map_or(1, |(epoch, _)| epoch.generation + 1);
                state.beginnings[beginner] = Beginning::Listed(state.replicas[replica].server, generation);
            }
            Action::WriteEpoch(beginner) => {
                let Beginning::Listed(server, generation) = state.beginnings[beginner] else { return };
                state.drawn += 1;
                let random = if self.checks(Check::RandomEpoch) { state.drawn } else { 0 };
                let epoch = Epoch { generation, random };
                state.epochs.insert(epoch, state.servers[server].identity);
                state.beginnings[beginner] = Beginning::Written(Place { server, epoch });
            }
            Action::Wait(beginner) => {
                let Beginning::Written(place) = state.beginnings[beginner] else { return };
                self.pass_time(state, place.epoch);
                let is_newest = state.newest().is_some_and(|(epoch, _)| epoch == place.epoch);
                let goes_on = is_newest || !self.checks(Check::NewestAfterWait);
                state.beginnings[beginner] = if goes_on { Beginning::Waited(place) } else { Beginning::Over };
            }
            Action::SetFence(beginner) => {
                let Beginning::Waited(place) = state.beginnings[beginner] else { return };
                let server = &mut state.servers[place.server];
                if server.fence.is_none_or(|fence| fence < place.epoch) {
                    let before = server.fence.replace(place.epoch);
                    let kept = before.and_then(|before| server.facts.get(&before)).cloned();
                    if let (Some(kept), false) = (kept, self.checks(Check::StartsEmpty)) {
                        server.facts.insert(place.epoch, kept);
                    }
                }
                state.beginnings[beginner] = Beginning::Over;
            }
            _ => {}
        }
    }

    pub(super) fn loss_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let left = self.losses.iter().filter(|loss| !state.lost.contains(loss));
        for &loss in left {
            let is_possible = match loss {
                Loss::FailOver => state.copy.is_some(),
                Loss::FailBack => state.servers.len() == 2,
                Loss::Wipe | Loss::Flush => true,
            };
            if is_possible {
                actions.push(Action::Lose(loss));
            }
        }
        if self.losses.contains(&Loss::FailOver) && !state.lost.contains(&Loss::FailOver) && state.copy.is_none() {
            actions.push(Action::CopyToReplica);
        }
    }

    pub(super) fn lose(state: &mut State, loss: Loss) {
        state.lost.push(loss);
        let fresh = state.lost.len() as u8;
        match loss {
            Loss::FailOver => {
                if let Some(copy) = state.copy.take() {
                    state.servers.push(Server { identity: Identity { run: fresh, replication: fresh }, ..copy });
                }
            }
            Loss::FailBack => {
                let identity = Identity { replication: fresh, ..state.servers[0].identity };
                state.servers[0] = Server { identity, ..state.servers[1].clone() };
                Self::disconnect(state, 0);
            }
            Loss::Wipe => {
                state.servers[0] = Server::empty(Identity { run: fresh, replication: fresh });
                Self::disconnect(state, 0);
            }
            Loss::Flush => state.servers[0] = Server::empty(state.servers[0].identity),
        }
    }

    /// The server's connections break: no lease on it is left, and what was on the way to it is not done.
    fn disconnect(state: &mut State, server: usize) {
        for replica in state.replicas.iter_mut().filter(|replica| replica.server == server) {
            (replica.asked, replica.lease) = (None, None);
        }
        for read in &mut state.reads {
            match read {
                Read::Asked(place) | Read::Known(place) | Read::Half(place, _) | Read::Unconfirmed(place, _)
                    if place.server == server =>
                {
                    *read = Read::Bucket;
                }
                _ => {}
            }
        }
        for write in &mut state.writes {
            match write.step {
                Step::Reserving(place, _) | Step::NothingToDo(place) if place.server == server => {
                    write.step = Step::Over
                }
                Step::Reserved(place, _) if place.server == server && write.commit == Put::Sent => {
                    write.commit = Put::Landed
                }
                _ => {}
            }
        }
        for recovery in &mut state.recoveries {
            if let Recovery::Looked { place, .. } = recovery
                && place.server == server
            {
                *recovery = Recovery::Idle;
            }
        }
        for trim in &mut state.trims {
            if let Trim::Looked { place, .. } | Trim::Listed { place, .. } | Trim::Discarding { place, .. } = trim
                && place.server == server
            {
                *trim = Trim::Idle;
            }
        }
        for reconciliation in &mut state.reconciliations {
            if let Reconciliation::Listed(place, _) | Reconciliation::Adopted(place) | Reconciliation::Walked(place) =
                reconciliation
                && place.server == server
            {
                *reconciliation = Reconciliation::Idle;
            }
        }
    }
}
