//! One registration of a device on its way: whatever happens to the device, in whatever order, and whenever its calls end.

use proptest::prelude::*;

use super::*;

/// What happens next.
#[derive(Debug, Clone)]
enum Happens {
    /// One of the table's commands.
    Command(usize),
    /// The device goes from wherever it stands.
    Leaves,
    /// So many of the calls that are out end, the oldest first.
    Ends(usize),
    /// The process ends, and so much later that nothing can arrive any more, the next one sends from wherever the device stands.
    NextProcess,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0_usize..64).prop_map(Happens::Command),
        3 => Just(Happens::Leaves),
        2 => (1_usize..3).prop_map(Happens::Ends),
        1 => Just(Happens::NextProcess),
    ]
}

/// Sends from where the device stands. What has left, if it may.
fn leaves(record: &mut Record, slot: u32, over: Option<Flight>) -> Option<Flight> {
    let pending = record.pending()?;
    let (instance, place) = (pending.instance.clone(), pending.place);
    let step = sending(slot, over);
    record.apply(Command::Attempt { instance, place, step }, now(), TIMELINE_MAX).ok()?;
    record.flight().cloned()
}

proptest! {
    #[test]
    fn a_registration_leaves_only_when_no_other_one_can_still_arrive(story in prop::collection::vec(happens(), 0..60)) {
        let (mut record, mut out) = (fresh(), Vec::<Flight>::new());
        // Commands that send, or say what became of a call, are told by the others.
        let is_a_call = |command: &Command| match command {
            Command::Attempt { step, .. } => matches!(step, Step::Send { .. } | Step::NothingLeft { .. }),
            Command::Land { .. } => true,
            _ => false,
        };
        let commands: Vec<_> = commands().into_iter().filter(|(_, command)| !is_a_call(command)).collect();
        for (number, next) in (10..).zip(story) {
            match next {
                Happens::Command(which) => {
                    let (_, command) = &commands[which % commands.len()];
                    let _may_not_fit = record.apply(command.clone(), now(), TIMELINE_MAX);
                }
                Happens::Leaves => out.extend(leaves(&mut record, number, None)),
                Happens::Ends(calls) => {
                    for call in out.drain(..calls.min(out.len())) {
                        prop_assert_eq!(record.apply(Command::Land { call }, now(), TIMELINE_MAX).err(), None);
                    }
                }
                Happens::NextProcess => {
                    out.clear();
                    let over = record.flight().cloned();
                    out.extend(leaves(&mut record, number, over));
                }
            }
            prop_assert!(out.len() <= 1, "{:?} are out at once", out);
            prop_assert!(out.first().is_none_or(|call| record.flight() == Some(call)), "the record knows what is out");
        }
    }
}

#[test]
fn what_is_on_its_way_is_kept_wherever_the_device_goes() {
    let sent = after(fresh(), [join(Reason::First), send()]);
    let gone: [&[Command]; 6] = [
        &[],
        &[Command::Move { seat: seat("b") }],
        &[Command::Move { seat: seat("b") }, Command::Reseat { class: Class::Expedited, why: "why" }],
        &[block()],
        &[block(), at_a(Step::GiveUp), Command::Unblock { by: "ops".to_owned() }, join(Reason::First)],
        &[Command::Retire { kept: None }],
    ];
    for commands in gone {
        let elsewhere = after(sent.clone(), commands.to_vec());
        assert_eq!(elsewhere.flight(), Some(&flight(1)), "{commands:?}");
        assert_eq!(after(elsewhere, [land()]).flight(), None);
    }
    let unsent = after(sent, [at_a(Step::NothingLeft { why: "why".to_owned(), sent_before: None })]);
    assert_eq!(unsent.flight(), None, "nothing had left");
}

#[test]
fn another_call_neither_lands_it_nor_takes_its_place() {
    let mut moved = after(fresh(), [join(Reason::First), send(), Command::Move { seat: seat("b") }]);
    let others = [
        Flight { sender: Sender(2), ..flight(1) },
        Flight { instance: instance("b"), ..flight(1) },
        Flight { sent: now().wall.into(), ..flight(1) },
        flight(2),
    ];
    for other in others {
        let landed = moved.apply(Command::Land { call: other.clone() }, now(), TIMELINE_MAX);
        assert_eq!(landed, Err(Rejected::NoFlight), "{other:?}");
        let sent = moved.apply(at_b(sending(2, Some(other.clone()))), now(), TIMELINE_MAX);
        assert_eq!(sent, Err(Rejected::InFlight), "{other:?}");
    }
    let sent = after(moved, [at_b(sending(2, Some(flight(1))))]);
    assert_eq!(sent.flight().map(|flight| (flight.instance.as_str(), flight.slot)), Some(("b", Some(SlotId(2)))));
}
