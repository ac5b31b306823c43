#include "cri/command_line.h"

#include <cstdint>
#include <map>
#include <utility>

#include "base/safe_id.h"
#include "base/status.h"
#include "persist/sandbox_state.h"

namespace lamina::cri {

absl::StatusOr<CommandLine> ParseCommandLine(const std::vector<std::string>& arguments) {
  CommandLine line;
  const std::map<std::string, std::string*> texts = {{"namespace", &line.ns},
                                                     {"address", &line.address},
                                                     {"publish-binary", &line.publish_binary},
                                                     {"id", &line.id},
                                                     {"bundle", &line.bundle}};
  const std::map<std::string, bool*> flags = {
      {"debug", &line.debug}, {"info", &line.info}, {"v", &line.version}, {"version", &line.version}};
  for (size_t i = 0; i < arguments.size(); ++i) {
    std::string word = arguments[i];
    if (word.empty() || word[0] != '-') {
      line.action = word;
      continue;
    }
    word.erase(0, word.rfind("--", 0) == 0 ? 2 : 1);
    std::string value;
    const size_t equals = word.find('=');
    const bool has_value = equals != std::string::npos;
    if (has_value) {
      value = word.substr(equals + 1);
      word.erase(equals);
    }
    if (const auto flag = flags.find(word); flag != flags.end()) {
      *flag->second = value != "false";
      continue;
    }
    if (!has_value) {
      if (i + 1 == arguments.size()) return InvalidArgument("flag -{} has no value", word);
      value = arguments[++i];
    }
    if (const auto text = texts.find(word); text != texts.end()) *text->second = value;
  }
  for (const auto& [flag, text] :
       {std::pair<const char*, const std::string&>("id", line.id), {"namespace", line.ns}}) {
    if (!text.empty() && !IsSafeId(text))
      return InvalidArgument("-{} \"{}\" is not safe as a file name", flag, text);
  }
  return line;
}

std::string ShortId(const std::string& id, size_t max_length) {
  if (id.size() <= max_length) return id;
  uint32_t hash = 2166136261;  // FNV-1a
  for (const char c : id) hash = (hash ^ static_cast<unsigned char>(c)) * 16777619;
  return fmt::format("{}-{:08x}", id.substr(0, max_length - 9), hash);
}

std::string ShimSocket(const std::string& run_dir, const std::string& ns, const std::string& sandbox_id) {
  return run_dir + "/shim/" + ShortId(ns, 16) + "-" + ShortId(sandbox_id, 24) + ".sock";
}

}  // namespace lamina::cri
