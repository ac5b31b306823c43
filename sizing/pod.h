// What is known of a pod's limits while it lives: the sum at its start, then container by container.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "sizing/plan.h"

namespace lamina::sizing {

// A value: copied to try a change, kept when the change worked. Containers are known by name, so that one
// that is started anew takes its predecessor's place, with what was changed in place meanwhile.
class PodLimits {
 public:
  struct Part {
    std::string id;     // of the container that is there; empty: none
    Limits first, now;  // `first` is what the pod's sum contains
    bool operator==(const Part&) const = default;
  };

  PodLimits() = default;
  PodLimits(std::optional<Limits> pod, std::map<std::string, Part> parts)
      : pod_(std::move(pod)), parts_(std::move(parts)) {}

  void Add(const std::string& name, const std::string& id, const Limits& limits);
  // An unknown id changes nothing.
  void Update(const std::string& id, const Limits& limits);
  void Remove(const std::string& id);
  // nullptr: no such container.
  const Limits* Find(const std::string& id) const;

  // Fills in pod, resized and containers.
  void FillIn(PlanInput& input) const;

  const std::optional<Limits>& pod() const { return pod_; }
  const std::map<std::string, Part>& parts() const { return parts_; }

 private:
  std::optional<Limits> pod_;
  std::map<std::string, Part> parts_;  // by the container's name
};

}  // namespace lamina::sizing
