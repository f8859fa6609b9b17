-- Sends every CT and MR series that has been quiet for StableAge seconds to the modality "pacs_ai".
--
-- Loop protection: results (SEG, SR, PR, KO, secondary captures) are no CT or MR, and nothing that the node itself
-- sent (series metadata RemoteAET = its AE title) goes back to it. An OT or RTSTRUCT never matches.
--
-- Orthanc does not try again by itself. A failed job stays in /jobs and is sent again by
-- POST /jobs/{id}/resubmit; DicomModalityStore jobs are safe to repeat, the node keeps each instance once.

local NODE = 'pacs_ai'
local ROUTED = { CT = true, MR = true }

local function nodeAeTitle()
  local modality = ParseJson(RestApiGet('/modalities/' .. NODE .. '/configuration', true))
  return modality and modality['AET'] or ''
end

function OnStableSeries(seriesId, tags, metadata)
  local remote = metadata and metadata['RemoteAET'] or ''
  if not ROUTED[tags['Modality']] then
    return
  end
  if remote == nodeAeTitle() then
    print('autoroute: series ' .. seriesId .. ' came from the node, not sent back')
    return
  end
  local order = { Resources = { seriesId }, Synchronous = false, Permissive = false }
  RestApiPost('/modalities/' .. NODE .. '/store', DumpJson(order, true), true)
  print('autoroute: series ' .. seriesId .. ' goes to ' .. NODE)
end
