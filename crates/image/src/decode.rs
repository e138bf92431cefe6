//! From bytes to JSON, in crit's shape. Nothing is lost on the way: fields the schema does not know are carried as
//! `"_unknown"`, strings that are not UTF-8 as an object with their bytes.
use crate::json::Json;
use crate::schema::{self, ENUMS, Field, Label, MESSAGES, Message, Show, Type};
use crate::{Extra, ImageKind, Reader, Result, text};

/// Deeper nesting than any record has; control group directories come nearest.
const MAX_DEPTH: usize = 100;
/// Name of the member that holds fields the schema does not know, encoded as they were.
pub(crate) const UNKNOWN: &str = "_unknown";

/// What the JSON should look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Addresses in hexadecimal, flags by name, IP addresses (crit's `--pretty`).
    pub pretty: bool,
    /// Only the size of payloads, not their bytes (crit's `--nopl`).
    pub without_payload: bool,
}

/// A whole image as JSON: an object with `"magic"` and `"entries"`.
///
/// # Errors
/// With the place that is not what the kind of image demands; [`crate::What::UnknownMagic`] also for raw images.
pub fn decode_image(name: &str, bytes: &[u8], style: Style) -> Result<Json> {
    let mut r = Reader::open_any(name, bytes)?;
    let kind = r.kind();
    let mut entries = Vec::new();
    each_entry(&mut r, kind, style, |entry| entries.push(entry))?;
    let magic = ("magic".to_owned(), Json::Str(kind.magic_name().to_owned()));
    Ok(Json::Object(vec![magic, ("entries".to_owned(), Json::Array(entries))]))
}

/// The text of [`decode_image`], without ever holding more than one record as JSON: large images take a fraction of the time.
///
/// # Errors
/// As [`decode_image`].
pub(crate) fn decode_text(name: &str, bytes: &[u8], style: Style) -> Result<String> {
    let mut r = Reader::open_any(name, bytes)?;
    let kind = r.kind();
    // What stands between the parts, on one line or on many.
    let [open, between, first, next, close, end] = if style.pretty {
        ["{\n    ", ",\n    ", "\n        ", ",\n        ", "\n    ]", "\n}"]
    } else {
        ["{", ", ", "", ", ", "]", "}"]
    };
    let magic = Json::Str(kind.magic_name().to_owned()).to_line();
    let mut out = format!("{open}\"magic\": {magic}{between}\"entries\": [");
    let mut count = 0_u64;
    each_entry(&mut r, kind, style, |entry| {
        out.push_str(if count == 0 { first } else { next });
        entry.write(&mut out, style.pretty.then_some(4), 2);
        count += 1;
    })?;
    out.push_str(if count == 0 { "]" } else { close });
    out.push_str(end);
    Ok(out)
}

/// Counts the records of an image, whatever lies between them.
///
/// # Errors
/// As [`decode_image`].
pub fn count_records(name: &str, bytes: &[u8]) -> Result<(ImageKind, u64)> {
    let mut r = Reader::open_any(name, bytes)?;
    let kind = r.kind();
    let style = Style { pretty: false, without_payload: true };
    let mut count = 0_u64;
    each_entry(&mut r, kind, style, |_| count += 1)?;
    // The head of a pagemap is no record of its own to people.
    Ok((kind, if kind.extra() == Extra::Pagemap { count.saturating_sub(1) } else { count }))
}

fn record_type(r: &Reader<'_>, name: &str) -> Result<&'static Message> {
    schema::message(name).ok_or_else(|| r.impossible(format!("{name:?} has no records: its content is raw")))
}

fn each_entry(r: &mut Reader<'_>, kind: ImageKind, style: Style, mut take: impl FnMut(Json)) -> Result<()> {
    let mut is_first = true;
    let first = record_type(r, kind.record_name())?;
    let mut ty = first;
    let mut sparse_ghost = false;
    while let Some(body) = r.next_bytes()? {
        let mut members =
            message(body, ty, style.pretty, false, 0).map_err(|why| r.impossible(format!("{}: {why}", ty.name)))?;
        match kind.extra() {
            Extra::Pagemap => ty = record_type(r, "pagemap_entry")?,
            Extra::Ghost if is_first => {
                let head: crate::proto::GhostFileEntry =
                    prost::Message::decode(body).map_err(|e| r.impossible(e.to_string()))?;
                sparse_ghost = head.chunks();
                if sparse_ghost {
                    ty = record_type(r, "ghost_chunk_entry")?;
                } else {
                    let content = r.rest();
                    if !style.without_payload {
                        members.push(extra(Json::Str(text::base64(content))));
                    }
                }
            }
            Extra::Ghost if sparse_ghost => {
                let content = r.extra(uint(body, 1))?;
                if !style.without_payload {
                    members.push(extra(Json::Str(text::base64(content))));
                }
            }
            Extra::Ghost | Extra::None => {}
            payload => members.push(extra(read_payload(r, payload, body, style)?)),
        }
        take(Json::Object(members));
        is_first = false;
    }
    Ok(())
}

fn extra(value: Json) -> (String, Json) {
    ("extra".to_owned(), value)
}

/// A length of a payload, from the record in front of it.
fn uint(body: &[u8], number: u32) -> u64 {
    let mut wire = Wire(body);
    let mut found = 0;
    while let Ok(Some((n, value))) = wire.field() {
        if let (true, Raw::Varint(value)) = (n == number, value) {
            found = value;
        }
    }
    found
}

fn read_payload(r: &mut Reader<'_>, payload: Extra, body: &[u8], style: Style) -> Result<Json> {
    let start = r.offset();
    let mut size = 0;
    let value = match payload {
        Extra::PipeData => {
            size = uint(body, 2);
            Json::Str(text::base64(r.extra(size)?))
        }
        Extra::SkQueue => {
            size = uint(body, 2);
            Json::Str(text::base64(r.extra(size)?))
        }
        Extra::TcpStream => {
            let (inq, outq) = (r.extra(uint(body, 1))?, r.extra(uint(body, 3))?);
            size = (inq.len() + outq.len()) as u64;
            let part = |name: &str, bytes| (name.to_owned(), Json::Str(text::base64(bytes)));
            Json::Object(vec![part("inq", inq), part("outq", outq)])
        }
        Extra::BpfMap => {
            size = uint(body, 2).saturating_add(uint(body, 3));
            Json::Str(text::base64(r.extra(size)?))
        }
        Extra::IpcSem => {
            size = uint(body, 2).saturating_mul(2);
            let numbers = r.extra(size)?;
            r.extra(padding(size, 8))?;
            let number = |two: &[u8]| Json::Int(two.iter().rev().fold(0, |n, &b| n << 8 | i128::from(b)));
            Json::Array(numbers.chunks(2).map(number).collect())
        }
        Extra::IpcShm => {
            let in_pagemaps = uint(body, 3) != 0;
            size = uint(body, 2);
            let here = if in_pagemaps { 0 } else { size };
            let content = r.extra(here)?;
            r.extra(padding(here, 4))?;
            Json::Str(text::base64(content))
        }
        Extra::IpcMsg => {
            let ty = record_type(r, "ipc_msg")?;
            let mut list = Vec::new();
            for _ in 0..uint(body, 3) {
                let Some(head) = r.next_bytes()? else {
                    return Err(r.impossible("a message of the queue is missing"));
                };
                let members =
                    message(head, ty, false, false, 0).map_err(|why| r.impossible(format!("{}: {why}", ty.name)))?;
                let len = uint(head, 2);
                let content = r.extra(len)?;
                r.extra(padding(len, 8))?;
                size += head.len() as u64 + len;
                list.push(Json::Object(members));
                list.push(Json::Str(text::base64(content)));
            }
            Json::Array(list)
        }
        Extra::None | Extra::Ghost | Extra::Pagemap => Json::Null,
    };
    debug_assert!(r.offset() >= start);
    Ok(if style.without_payload { Json::Str(format!("... <{}>", human(size))) } else { value })
}

/// Zero bytes after `len` bytes that make a multiple of `to`.
pub(crate) fn padding(len: u64, to: u64) -> u64 {
    len.wrapping_neg() % to
}

/// A size as crit writes it.
fn human(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["", "K", "M", "G", "T", "P", "E"] {
        if size < 1024.0 {
            return if size.fract() == 0.0 { format!("{size:.0}{unit}B") } else { format!("{size:.1}{unit}B") };
        }
        size /= 1024.0;
    }
    format!("{size:.1}ZB")
}

/// A field's value as it stands on the wire.
#[derive(Clone, Copy, Debug)]
enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

/// The fields of a message one after another.
pub(crate) struct Wire<'a>(pub(crate) &'a [u8]);

/// Whether bytes are whole fields, of whatever message.
pub(crate) fn are_fields(bytes: &[u8]) -> Result<(), String> {
    let mut wire = Wire(bytes);
    while wire.field()?.is_some() {}
    Ok(())
}

impl<'a> Wire<'a> {
    fn field(&mut self) -> Result<Option<(u32, Raw<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().filter(|n| (1..1 << 29).contains(n));
        let number = number.ok_or_else(|| format!("{} is no field number", key >> 3))?;
        let value = match key & 7 {
            0 => Raw::Varint(self.varint()?),
            1 => Raw::Fixed64(self.take(8)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))),
            2 => {
                let len = self.varint()?;
                Raw::Bytes(self.take(len)?)
            }
            5 => Raw::Fixed32(self.take(4)?.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b))),
            other => return Err(format!("field {number} has wire type {other}, which no record uses")),
        };
        Ok(Some((number, value)))
    }

    pub(crate) fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or("the record ends inside a number")?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is longer than 64 bits".to_owned())
    }

    pub(crate) fn take(&mut self, len: u64) -> Result<&'a [u8], String> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or_else(|| format!("the record ends inside a field: {len} bytes expected, {} there", self.0.len()))?;
        self.0 = rest;
        Ok(taken)
    }
}

/// Values of one field, collected over the whole message.
enum Seen<'a> {
    One(Raw<'a>),
    Many(Vec<Raw<'a>>),
    /// A message that came in pieces, which count as one.
    Joined(Vec<u8>),
}

/// The members of a message, ordered by field number.
pub(crate) fn message(
    bytes: &[u8],
    ty: &Message,
    pretty: bool,
    hex: bool,
    depth: usize,
) -> Result<Vec<(String, Json)>, String> {
    if depth > MAX_DEPTH {
        return Err("nested too deeply".to_owned());
    }
    // By the field's place in the schema.
    let mut seen: Vec<Option<Seen<'_>>> = std::iter::repeat_with(|| None).take(ty.fields.len()).collect();
    let mut unknown = Vec::new();
    let mut wire = Wire(bytes);
    loop {
        let before = wire.0;
        let Some((number, raw)) = wire.field()? else { break };
        let known = ty.fields.binary_search_by_key(&number, |f| f.number).ok();
        let Some((at, field)) = known.and_then(|at| Some((at, ty.fields.get(at)?))) else {
            unknown.extend_from_slice(before.get(..before.len() - wire.0.len()).unwrap_or_default());
            continue;
        };
        let (alone, packed);
        let values: &[Raw<'_>] = match (raw, wire_type(field.ty)) {
            (Raw::Varint(_), 0) | (Raw::Fixed64(_), 1) | (Raw::Bytes(_), 2) | (Raw::Fixed32(_), 5) => {
                alone = [raw];
                &alone
            }
            // Packed: numbers without keys. Readers accept them for every repeated field.
            (Raw::Bytes(list), wanted) if field.label == Label::Repeated => {
                packed = unpack(list, wanted)?;
                &packed
            }
            _ => {
                unknown.extend_from_slice(before.get(..before.len() - wire.0.len()).unwrap_or_default());
                continue;
            }
        };
        let Some(place) = seen.get_mut(at) else { continue };
        match (field.label, &mut *place) {
            (Label::Repeated, Some(Seen::Many(all))) => all.extend_from_slice(values),
            (Label::Repeated, _) => *place = Some(Seen::Many(values.to_vec())),
            (_, earlier) => {
                let Some(&value) = values.last() else { continue };
                match (field.ty, earlier, value) {
                    (Type::Message(_), Some(Seen::One(Raw::Bytes(first))), Raw::Bytes(second)) => {
                        let joined = [*first, second].concat();
                        *place = Some(Seen::Joined(joined));
                    }
                    (Type::Message(_), Some(Seen::Joined(all)), Raw::Bytes(more)) => all.extend_from_slice(more),
                    _ => *place = Some(Seen::One(value)),
                }
            }
        }
    }
    let mut members = Vec::with_capacity(seen.iter().flatten().count() + usize::from(!unknown.is_empty()));
    for (field, values) in ty.fields.iter().zip(seen) {
        let Some(values) = values else { continue };
        let convert =
            |raw: Raw<'_>| value(raw, field, pretty, hex, depth).map_err(|why| format!("{}: {why}", field.name));
        let json = match values {
            Seen::One(raw) => convert(raw)?,
            Seen::Joined(bytes) => convert(Raw::Bytes(&bytes))?,
            Seen::Many(all) if all.is_empty() => continue,
            Seen::Many(all) => match address(field, &all, pretty) {
                Some(address) => Json::Array(vec![Json::Str(address)]),
                None => Json::Array(all.into_iter().map(convert).collect::<Result<_, _>>()?),
            },
        };
        members.push((field.name.to_owned(), json));
    }
    if !unknown.is_empty() {
        members.push((UNKNOWN.to_owned(), Json::Str(text::base64(&unknown))));
    }
    Ok(members)
}

fn wire_type(ty: Type) -> u32 {
    match ty {
        Type::Double | Type::Fixed64 | Type::Sfixed64 => 1,
        Type::Float | Type::Fixed32 | Type::Sfixed32 => 5,
        Type::Text | Type::Bytes | Type::Message(_) => 2,
        _ => 0,
    }
}

fn unpack(list: &[u8], wire_type: u32) -> Result<Vec<Raw<'_>>, String> {
    let mut wire = Wire(list);
    let mut out = Vec::new();
    while !wire.0.is_empty() {
        out.push(match wire_type {
            0 => Raw::Varint(wire.varint()?),
            1 => Raw::Fixed64(wire.take(8)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))),
            5 => Raw::Fixed32(wire.take(4)?.iter().rev().fold(0, |n, &b| n << 8 | u32::from(b))),
            _ => return Err("a packed list of what cannot be packed".to_owned()),
        });
    }
    Ok(out)
}

fn address(field: &Field, all: &[Raw<'_>], pretty: bool) -> Option<String> {
    if !pretty || field.show != Show::Ip {
        return None;
    }
    let words: Option<Vec<u32>> = all
        .iter()
        .map(|raw| match raw {
            // Protobuf takes the low half of a varint that is too wide for its field.
            Raw::Varint(v) => Some(*v as u32),
            _ => None,
        })
        .collect();
    text::ip(&words?)
}

fn value(raw: Raw<'_>, field: &Field, pretty: bool, hex: bool, depth: usize) -> Result<Json, String> {
    let hex = hex || field.show == Show::Hex;
    let number: i128 = match (raw, field.ty) {
        (Raw::Bytes(bytes), Type::Message(at)) => {
            let ty = MESSAGES.get(at).ok_or("a type that is not in the schema")?;
            return message(bytes, ty, pretty, hex, depth + 1).map(Json::Object);
        }
        (Raw::Bytes(bytes), Type::Text) => return Ok(string(bytes)),
        (Raw::Bytes(bytes), _) if field.show == Show::Quoted => return Ok(Json::Str(text::quoted(bytes))),
        (Raw::Bytes(bytes), _) => return Ok(Json::Str(text::base64(bytes))),
        (Raw::Varint(v), Type::Bool) => return Ok(Json::Bool(v != 0)),
        (Raw::Varint(v), Type::Enum(at)) => {
            let value = v as i32;
            let names = ENUMS.get(at).map_or(&[][..], |e| e.values);
            let name = names.iter().find(|(n, _)| *n == value);
            return Ok(name.map_or(Json::Int(value.into()), |(_, name)| Json::Str((*name).to_owned())));
        }
        (Raw::Fixed64(v), Type::Double) => return Ok(Json::Float(f64::from_bits(v))),
        (Raw::Fixed32(v), Type::Float) => return Ok(Json::Float(f32::from_bits(v).into())),
        (Raw::Varint(v), Type::Int32) => (v as i32).into(),
        (Raw::Varint(v), Type::Int64) => (v as i64).into(),
        (Raw::Varint(v), Type::Uint32) => (v as u32).into(),
        (Raw::Varint(v), Type::Sint32) => {
            let v = v as u32;
            ((v >> 1) as i32 ^ -((v & 1) as i32)).into()
        }
        (Raw::Varint(v), Type::Sint64) => ((v >> 1) as i64 ^ -((v & 1) as i64)).into(),
        (Raw::Fixed64(v), Type::Sfixed64) => (v as i64).into(),
        (Raw::Fixed32(v), Type::Sfixed32) => (v as i32).into(),
        (Raw::Varint(v) | Raw::Fixed64(v), _) => v.into(),
        (Raw::Fixed32(v), _) => v.into(),
    };
    if !pretty {
        return Ok(Json::Int(number));
    }
    let unsigned = number as u64;
    Ok(match field.show {
        _ if hex && number < 0 => Json::Str(format!("0x-{:x}", number.unsigned_abs())),
        _ if hex => Json::Str(format!("{number:#x}")),
        Show::Dev => Json::Str(text::dev(unsigned, false)),
        Show::OldDev => Json::Str(text::dev(unsigned, true)),
        Show::Flags(table) => Json::Str(flag_names(unsigned, schema::flags(table))),
        Show::Values(table) => match schema::values(table).iter().find(|(v, _)| *v == unsigned) {
            Some((_, name)) => Json::Str((*name).to_owned()),
            None => Json::Int(number),
        },
        _ => Json::Int(number),
    })
}

fn string(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(s) => Json::Str(s.to_owned()),
        Err(_) => Json::Object(vec![
            ("text".to_owned(), Json::Str(String::from_utf8_lossy(bytes).into_owned())),
            ("base64".to_owned(), Json::Str(text::base64(bytes))),
        ]),
    }
}

fn flag_names(value: u64, table: &[(&str, u64)]) -> String {
    let mut names: Vec<String> =
        table.iter().filter(|(_, bit)| value & bit != 0).map(|(name, _)| (*name).to_owned()).collect();
    let rest = table.iter().fold(value, |rest, (_, bit)| rest & !bit);
    if rest != 0 {
        names.push(format!("{rest:#x}"));
    }
    names.join(" | ")
}

#[cfg(test)]
mod tests;
