// laminad's journal of claims. The first byte chooses: the file as it is, or one frame of either form whose
// checksums are right (no random byte gets past them), or a journal of three claims that ends early or has
// one byte changed.
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>

#include <algorithm>
#include <string>

#include "base/crc32.h"
#include "base/framing.h"
#include "base/status.h"
#include "node/claims_journal.h"
#include "tests/fuzz/check.h"

namespace {

using namespace lamina::node;

// Maps in one order.
std::string Bytes(const lamina::laminad::v1::ClaimRecord& record) {
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    record.SerializeToCodedStream(&coded);
  }
  return bytes;
}

bool Same(const ClaimRecords& a, const ClaimRecords& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& one, const auto& other) {
    return one.first == other.first && Bytes(one.second) == Bytes(other.second);
  });
}

ClaimRecords Read(const std::string& content) {
  const auto records = DecodeJournal(content, "f");
  if (!records.ok()) {
    FUZZ_CHECK(lamina::Message(records.status()).rfind("f: ", 0) == 0);
    return {};
  }
  const auto again = DecodeJournal(EncodeJournal(*records), "f");
  FUZZ_CHECK(again.ok());
  FUZZ_CHECK(Same(*again, *records));
  return *records;
}

std::string Little(uint32_t value) {
  std::string bytes;
  for (int i = 0; i < 4; ++i) bytes.push_back(static_cast<char>(value >> (8 * i) & 0xFF));
  return bytes;
}
// A journal of version 1.
std::string OldJournal(const std::string& payload) {
  const std::string header =
      "LCfr" + Little(static_cast<uint32_t>(payload.size())) + Little(lamina::Crc32(payload));
  return "lamina-claims 1\n" + header + Little(lamina::Crc32(header)) + payload;
}

// What every prefix of the journal and of its frames must say, and what a changed byte must not.
void Damage(const uint8_t* data, size_t size) {
  if (size < 3) return;
  ClaimRecords records;
  std::string content = EncodeJournal(records);
  for (const char* id : {"a", "b", "c"}) {
    ClaimRecords one;
    one[id].mutable_claim()->set_sandbox_id(id);
    one[id].set_generation(data[2]);
    records.insert(one.begin(), one.end());
    content += EncodeJournal(one);
  }
  const size_t at = (data[0] << 8 | data[1]) % content.size();
  if (data[2] % 2 == 0) {
    const ClaimRecords cut = Read(content.substr(0, at));
    for (const auto& [id, record] : cut) FUZZ_CHECK(records.count(id) > 0);
    return;
  }
  content[at] = static_cast<char>(content[at] ^ (data[2] | 1));
  for (const auto& [id, record] : Read(content)) {
    const auto it = records.find(id);
    FUZZ_CHECK(it != records.end());
    FUZZ_CHECK(Bytes(record) == Bytes(it->second));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0:
      Read(text);
      break;
    case 1:
      Read(lamina::EncodeFrame({"claims", 2, 2}, text));
      break;
    case 2:
      Read(OldJournal(text));
      break;
    default:
      Damage(data + 1, size - 1);
      break;
  }
  return 0;
}
