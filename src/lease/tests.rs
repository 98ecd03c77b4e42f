//! What a lease does in each state, by hand and in every sequence of events.

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn lease() -> Lease {
    Lease::new(Policy::default(), s(0), 0.5)
}

fn denied() -> Answer {
    Answer::Denied("disabled".to_owned())
}

fn outage() -> Answer {
    Answer::Outage("refused".to_owned())
}

/// One denial is not believed, and the next check comes soon; two that are far enough apart lock.
#[test]
fn two_denials_lock() {
    let mut lease = lease();
    assert_eq!(lease.next_check(), Some(s(60)));
    assert_eq!(lease.answered(s(60), 0.5, denied()), None);
    assert_eq!((lease.state(), lease.next_check()), (State::Degraded, Some(s(65))));
    assert_eq!(lease.problem(), Some("disabled"));
    assert_eq!(lease.answered(s(64), 0.5, denied()), None, "too soon");
    let action = lease.answered(s(65), 0.5, denied());
    assert_eq!(action, Some(Action::Drain(Reason::Revoked)));
    assert_eq!((lease.state(), lease.next_check()), (State::Draining(Reason::Revoked), None));
    lease.drained(s(66));
    assert_eq!((lease.state(), lease.since()), (State::Locked(Reason::Revoked), s(66)));
    assert_eq!(lease.answered(s(71), 0.5, denied()), None);
    assert_eq!(lease.answered(s(140), 0.5, Answer::Granted), Some(Action::Reopen));
    lease.unlocked(s(141), 0.5);
    assert_eq!((lease.state(), lease.last_good()), (State::Unlocked, s(141)));
}

/// A denial that an outage or a grant interrupts has to be given twice again.
#[test]
fn denials_in_a_row_only() {
    for between in [Answer::Granted, outage()] {
        let mut lease = lease();
        lease.answered(s(60), 0.5, denied());
        lease.answered(s(66), 0.5, between);
        assert_eq!(lease.answered(s(70), 0.5, denied()), None);
        assert_eq!(lease.answered(s(75), 0.5, denied()), Some(Action::Drain(Reason::Revoked)));
    }
}

/// An outage is served through until its grace is over, counted from the last grant, and asked
/// about ever less often; the end of the grace is a time to ask.
#[test]
fn an_outage_has_a_grace() {
    let mut lease = lease();
    let mut waits = Vec::new();
    let mut now = s(60);
    loop {
        let action = lease.answered(now, 0.5, outage());
        if let Some(action) = action {
            assert_eq!((now, action), (s(3600), Action::Drain(Reason::Outage)));
            break;
        }
        assert_eq!((lease.state(), lease.grace_ends()), (State::Degraded, Some(s(3600))));
        let next = lease.next_check().expect("it asks");
        waits.push(next - now);
        now = next;
    }
    assert_eq!(&waits[..5], [s(5), s(10), s(20), s(40), s(60)]);
    lease.drained(now);
    assert_eq!(lease.answered(now + s(5), 0.5, outage()), None);
    assert_eq!(lease.state(), State::Locked(Reason::Outage));
    assert_eq!(lease.answered(now + s(9), 0.5, denied()), None);
    assert_eq!(lease.state(), State::Locked(Reason::Revoked), "now somebody has decided");
}

#[test]
fn without_a_grace_the_first_outage_locks_and_with_serve_none_does() {
    let none = Policy { grace: s(0), ..Policy::default() };
    let mut lease = Lease::new(none, s(0), 0.5);
    assert_eq!(lease.answered(s(60), 0.5, outage()), Some(Action::Drain(Reason::Outage)));
    let serve = Policy { on_outage: OnOutage::Serve, ..none };
    let mut lease = Lease::new(serve, s(0), 0.5);
    for minute in 1..100_000 {
        assert_eq!(lease.answered(s(60 * minute), 0.5, outage()), None);
    }
    lease.answered(s(6_000_000), 0.5, denied());
    let action = lease.answered(s(6_000_005), 0.5, denied());
    assert_eq!(action, Some(Action::Drain(Reason::Revoked)), "a denial locks all the same");
}

/// A service that takes a question and says nothing does not keep a volume open longer than one
/// that says no word at all: the end of the grace ends the waiting, too.
#[test]
fn an_answer_that_does_not_come_is_an_outage() {
    let policy = Policy { grace: s(90), ..Policy::default() };
    let mut lease = Lease::new(policy, s(0), 0.5);
    assert_eq!(lease.answer_due(s(60)), Some(s(90)));
    assert_eq!(lease.answer_due(s(88)), Some(s(93)), "it has time to answer");
    assert_eq!(lease.answered(s(90), 0.5, outage()), Some(Action::Drain(Reason::Outage)));
    assert_eq!(lease.answer_due(s(60)), None, "nobody is served");
    lease.drained(s(91));
    assert_eq!(lease.answer_due(s(60)), None);
    assert_eq!(lease.answered(s(60), 0.5, Answer::Granted), None, "an answer from before");
    assert_eq!(lease.next_check(), Some(s(91)), "so it asks again, at once");
    let serve = Policy { on_outage: OnOutage::Serve, ..policy };
    assert_eq!(Lease::new(serve, s(0), 0.5).answer_due(s(60)), None);
}

/// A provider that gives and takes the key every second for an hour: the volume is locked and
/// opened a few times and not hundreds.
#[test]
fn flapping_every_second() {
    for period in 1..=12 {
        let policy = Policy { check: s(1), ..Policy::default() };
        let mut lease = Lease::new(policy, s(0), 0.5);
        let (mut drained, mut now) = (0, s(0));
        while now < s(3600) {
            now += Duration::from_millis(100);
            if lease.next_check().is_none_or(|next| now < next) {
                continue;
            }
            let given = (now.as_secs() / period) % 2 == 0;
            let answer = if given { Answer::Granted } else { denied() };
            match lease.answered(now, 0.5, answer) {
                Some(Action::Drain(_)) => {
                    drained += 1;
                    lease.drained(now);
                }
                Some(Action::Reopen) => lease.unlocked(now, 0.5),
                None => {}
            }
        }
        assert!(drained <= 13, "period {period}: locked {drained} times in an hour");
    }
}

/// What was locked by hand is unlocked by hand only, whatever it was before.
#[test]
fn by_hand() {
    let mut lease = lease();
    assert_eq!(lease.unlock(), None);
    assert_eq!(lease.lock(s(1)), Some(Action::Drain(Reason::Manual)));
    assert_eq!(lease.lock(s(2)), None);
    lease.drained(s(3));
    assert_eq!((lease.state(), lease.next_check()), (State::Locked(Reason::Manual), None));
    assert_eq!(lease.answered(s(99), 0.5, Answer::Granted), None);
    assert_eq!(lease.unlock(), Some(Action::Reopen));
    lease.unlocked(s(100), 0.5);
    assert_eq!(lease.state(), State::Unlocked);
    lease.answered(s(160), 0.5, denied());
    lease.answered(s(165), 0.5, denied());
    assert_eq!(lease.lock(s(166)), None, "while draining");
    lease.drained(s(167));
    assert_eq!(lease.state(), State::Locked(Reason::Manual));
}

/// A provider that flaps keeps the volume locked for twice as long each time, ten minutes at most;
/// one that was steady for that long is believed at once again.
#[test]
fn flapping_is_damped() {
    let mut lease = lease();
    let mut now = s(60);
    let mut held = Vec::new();
    for _ in 0..9 {
        assert_eq!(lease.answered(now, 0.5, denied()), None);
        assert!(lease.answered(now + s(5), 0.5, denied()).is_some());
        let locked = now + s(5);
        lease.drained(locked);
        now = locked;
        while lease.answered(now, 0.5, Answer::Granted).is_none() {
            now = lease.next_check().expect("it asks").max(now + s(1));
        }
        held.push((now - locked).as_secs());
        lease.unlocked(now, 0.5);
    }
    assert_eq!(held, [0, 10, 20, 40, 80, 160, 320, 600, 600]);
    now += FLAP_WINDOW;
    lease.answered(now, 0.5, denied());
    lease.answered(now + s(5), 0.5, denied());
    lease.drained(now + s(5));
    assert_eq!(lease.answered(now + s(6), 0.5, Answer::Granted), Some(Action::Reopen));
}

/// Every sequence of eight events: nothing unlocks but a grant or a hand, nothing locks without two
/// denials in a row, an outage for longer than the grace, or a hand; no time runs backwards.
#[test]
fn every_sequence() {
    const EVENTS: u32 = 7;
    let policy = Policy { check: s(60), grace: s(200), on_outage: OnOutage::Lock };
    for code in 0..EVENTS.pow(7) {
        let mut lease = Lease::new(policy, s(0), 0.5);
        let (mut now, mut rest) = (s(0), code);
        let (mut last_grant, mut denials) = (s(0), Vec::new());
        let mut by_hand = false;
        for _ in 0..7 {
            now += s(40);
            let (event, before) = (rest % EVENTS, lease.state());
            rest /= EVENTS;
            let serving = matches!(before, State::Unlocked | State::Degraded);
            let action = match event {
                0 => lease.answered(now, 0.5, Answer::Granted),
                1 => lease.answered(now, 0.5, denied()),
                2 => lease.answered(now, 0.5, outage()),
                3 => lease.lock(now),
                4 => lease.unlock(),
                5 => {
                    lease.drained(now);
                    None
                }
                _ => {
                    lease.unlocked(now, 0.5);
                    None
                }
            };
            match event {
                0 if serving => {
                    last_grant = now;
                    denials.clear();
                }
                1 if serving => denials.push(now),
                2 if serving => denials.clear(),
                3 => by_hand = true,
                6 if matches!(before, State::Locked(_)) => {
                    (last_grant, by_hand) = (now, false);
                    denials.clear();
                }
                _ => {}
            }
            match action {
                Some(Action::Drain(reason)) => {
                    assert!(serving, "{code}: drained twice");
                    match reason {
                        Reason::Revoked => assert!(denials.len() >= 2, "{code}"),
                        Reason::Outage => assert!(now - last_grant >= s(200), "{code}"),
                        Reason::Manual => assert_eq!(event, 3, "{code}"),
                    }
                }
                Some(Action::Reopen) => {
                    assert!(matches!(before, State::Locked(_)), "{code}");
                    assert!(event == 4 || (event == 0 && !by_hand), "{code}");
                }
                None => {}
            }
            let is_serving = matches!(lease.state(), State::Unlocked | State::Degraded);
            assert!(!is_serving || serving || event == 6, "{code}: serves without a grant");
            assert!(lease.since() <= now && lease.last_good() <= now, "{code}");
            let asks = !matches!(lease.state(), State::Draining(_) | State::Locked(Reason::Manual));
            assert_eq!(lease.next_check().is_some(), asks, "{code}");
        }
    }
}
