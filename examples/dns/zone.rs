//! The zone: what the registry looks like to whoever asks in DNS.
//!
//! Under the apex `quorate.test.`, in lower case:
//!
//! | name                        | records                                                        |
//! |-----------------------------|----------------------------------------------------------------|
//! | `SERVICE`                   | A and AAAA of all its instances that have addresses; SRV of all |
//! | `_SERVICE._tcp`             | SRV of all its instances (RFC 2782)                            |
//! | `ID.SERVICE`                | A or AAAA; a CNAME if the instance is reached by another name  |
//! | the apex                    | SOA, NS                                                        |
//!
//! A record may be cached for as long as its instance's lease: no instance is believed in longer than a ttl after it is gone
//! from the registry, which is a ttl after it has died.

use std::net::IpAddr;
use std::sync::Arc;

use domain::base::iana::{Class, Opcode, Rcode};
use domain::base::message_builder::{AnswerBuilder, PushError, StaticCompressor};
use domain::base::{Message, MessageBuilder, Name, Record, Rtype, Serial, ToName, Ttl};
use domain::rdata::{A, Aaaa, Cname, Ns, Soa, Srv, ZoneRecordData};
use quorate::{Entry, Instance, Mirrored, Registered, leading};

pub const APEX: &str = "quorate.test";
/// Bytes of an answer by UDP to somebody who says nothing about it (RFC 1035, 4.2.1).
const UDP_BYTES: usize = 512;
/// The most that is sent by UDP: larger packets get lost on their way.
const UDP_BYTES_MAX: usize = 1232;
/// How long the absence of a name may be cached (RFC 2308): an instance that comes is to be found soon.
const ABSENT: Ttl = Ttl::from_secs(1);
const APEX_TTL: Ttl = Ttl::from_secs(60);

type Registry = Mirrored<Registered, (String, String)>;
type Answer = Record<Name<Vec<u8>>, ZoneRecordData<Vec<u8>, Name<Vec<u8>>>>;
type Reply = AnswerBuilder<StaticCompressor<Vec<u8>>>;

/// How a question came, and so how large its answer may be.
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum By {
    Udp,
    Tcp,
}

/// The answer to a message; `None` if it is none, or not even has a header.
pub fn answer(question: &[u8], by: By, registry: &Registry) -> Option<Vec<u8>> {
    let question = Message::from_octets(question).ok().filter(|question| !question.header().qr())?;
    let limit = match (by, question.opt()) {
        (By::Tcp, _) => usize::from(u16::MAX),
        (By::Udp, None) => UDP_BYTES,
        (By::Udp, Some(opt)) => usize::from(opt.udp_payload_size()).clamp(UDP_BYTES, UDP_BYTES_MAX),
    };
    let reply = || {
        let mut builder = MessageBuilder::from_target(StaticCompressor::new(Vec::new())).expect("room for a header");
        builder.set_push_limit(limit);
        builder
    };
    let refused = |rcode| Some(reply().start_error(&question, rcode).finish().into_target());
    if question.header().opcode() != Opcode::QUERY {
        return refused(Rcode::NOTIMP);
    }
    let Ok(asked) = question.sole_question() else { return refused(Rcode::FORMERR) };
    let Some(labels) = below_apex(asked.qname()) else { return refused(Rcode::REFUSED) };
    if asked.qclass() != Class::IN {
        return refused(Rcode::REFUSED);
    }
    let found = look_up(&labels, registry);
    let rcode = if found.is_some() { Rcode::NOERROR } else { Rcode::NXDOMAIN };
    let named = found.unwrap_or_default();
    let wanted = |record: &&Answer| {
        let (is, asked) = (record.rtype(), asked.qtype());
        is == asked || asked == Rtype::ANY || is == Rtype::CNAME
    };
    let answers: Vec<Answer> = named.iter().filter(wanted).cloned().collect();
    let built = reply().start_answer(&question, rcode).and_then(|reply| complete(reply, &answers, registry, &question));
    match built {
        Ok(reply) => Some(reply),
        // Whoever is told that there is more asks again by TCP.
        Err(_) => {
            let mut cut = reply().start_error(&question, rcode);
            cut.header_mut().set_aa(true);
            cut.header_mut().set_tc(true);
            Some(cut.finish().into_target())
        }
    }
}

/// Puts in the answers, the zone's SOA if there are none, and the addresses behind SRV records for as far as they fit.
fn complete(
    mut reply: Reply,
    answers: &[Answer],
    registry: &Registry,
    question: &Message<&[u8]>,
) -> Result<Vec<u8>, PushError> {
    reply.header_mut().set_aa(true);
    answers.iter().try_for_each(|record| reply.push_ref(record))?;
    let mut reply = reply.authority();
    if answers.is_empty() {
        reply.push(soa(ABSENT))?;
    }
    let mut reply = reply.additional();
    if question.opt().is_some() {
        reply.opt(|opt| {
            opt.set_udp_payload_size(UDP_BYTES_MAX as u16);
            Ok(())
        })?;
    }
    for record in answers {
        let ZoneRecordData::Srv(srv) = record.data() else { continue };
        let addresses = below_apex(srv.target()).and_then(|labels| look_up(&labels, registry)).unwrap_or_default();
        // What does not fit can be asked for.
        let _ = addresses.into_iter().try_for_each(|address| reply.push(address));
    }
    Ok(reply.finish().into_target())
}

/// The labels in front of the apex, in lower case; `None` for a name of somebody else's.
fn below_apex(name: &impl ToName) -> Option<Vec<String>> {
    let labels: Vec<String> = name.iter_labels().map(|label| label.to_string().to_ascii_lowercase()).collect();
    let apex: Vec<&str> = APEX.split('.').chain([""]).collect();
    let front = labels.len().checked_sub(apex.len())?;
    (labels[front..].iter().eq(apex.iter())).then(|| labels[..front].to_vec())
}

/// All records of a name; `None` if there is no such name.
fn look_up(labels: &[String], registry: &Registry) -> Option<Vec<Answer>> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels[..] {
        [] => Some(vec![soa(APEX_TTL), apex(APEX_TTL, Ns::new(name("ns")?).into())]),
        // Nothing by itself, but there are names below it.
        ["_tcp"] => Some(Vec::new()),
        [service, "_tcp"] => {
            let srv = |(id, web): (&str, &Arc<Entry<Registered>>)| srv(&labels, id, &service[1..], web);
            let service = service.strip_prefix('_')?;
            non_empty(instances(service, registry).filter_map(srv).collect())
        }
        [service] => {
            let both = |(id, web): (&str, &Arc<Entry<Registered>>)| {
                let address = address(&labels, web).filter(|record| record.rtype() != Rtype::CNAME);
                address.into_iter().chain(srv(&labels, id, service, web)).collect::<Vec<_>>()
            };
            non_empty(instances(service, registry).flat_map(both).collect())
        }
        [id, service] => {
            let web = registry.get(&(service, id)).ok().flatten().filter(|web| !web.is_leaving())?;
            Some(address(&labels, web).into_iter().collect())
        }
        _ => None,
    }
}

fn instances<'a>(
    service: &str,
    registry: &'a Registry,
) -> impl Iterator<Item = (&'a str, &'a Arc<Entry<Registered>>)> + use<'a> {
    let listed = registry.range::<(&str, &str)>(leading((service,))).into_iter().flatten();
    listed.filter(|(_, web)| !web.is_leaving()).map(|((_, id), web)| (id.as_str(), web))
}

fn srv(labels: &[&str], id: &str, service: &str, web: &Entry<Registered>) -> Option<Answer> {
    let Instance { priority, weight, port, .. } = web.instance;
    // A target must not be an alias (RFC 2782).
    let target = match web.host.parse::<IpAddr>() {
        Ok(_) => name(&format!("{id}.{service}"))?,
        Err(_) => web.host.parse().ok()?,
    };
    Some(record(labels, ttl(web), Srv::new(priority, weight, port, target).into()))
}

/// Where an instance is: by address, or by another name.
fn address(labels: &[&str], web: &Entry<Registered>) -> Option<Answer> {
    let data = match web.host.parse() {
        Ok(IpAddr::V4(address)) => A::new(address).into(),
        Ok(IpAddr::V6(address)) => Aaaa::new(address).into(),
        Err(_) => Cname::new(web.host.parse().ok()?).into(),
    };
    Some(record(labels, ttl(web), data))
}

fn ttl(web: &Entry<Registered>) -> Ttl {
    Ttl::from_secs(web.ttl.map_or(0, |ttl| ttl.as_secs() as u32))
}

fn soa(ttl: Ttl) -> Answer {
    let (primary, mailbox) = (name("ns").expect("a short name"), name("hostmaster").expect("a short name"));
    let day = Ttl::from_secs(86_400);
    // Nobody transfers this zone: its serial says nothing.
    apex(ttl, Soa::new(primary, mailbox, Serial(1), day, day, day, ABSENT).into())
}

fn apex(ttl: Ttl, data: ZoneRecordData<Vec<u8>, Name<Vec<u8>>>) -> Answer {
    record(&[], ttl, data)
}

fn record(labels: &[&str], ttl: Ttl, data: ZoneRecordData<Vec<u8>, Name<Vec<u8>>>) -> Answer {
    let owner = name(&labels.join(".")).expect("it came in a question");
    Record::new(owner, Class::IN, ttl, data)
}

/// A name below the apex; `None` if the DNS has no such name, as for an id of a hundred letters.
fn name(front: &str) -> Option<Name<Vec<u8>>> {
    let dot = if front.is_empty() { "" } else { "." };
    format!("{front}{dot}{APEX}.").parse().ok()
}

fn non_empty(records: Vec<Answer>) -> Option<Vec<Answer>> {
    (!records.is_empty()).then_some(records)
}
